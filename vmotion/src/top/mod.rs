//! `vmotion top`: what hosts, machines, pieces, moves and plans do, as it changes.

mod data;
mod screen;

use crate::{
    arguments::{Global, Section, TopArguments},
    context, output,
};
use anyhow::Result;
use data::{Data, Rows};
use ratatui::{
    DefaultTerminal,
    crossterm::event::{self, Event, KeyEventKind},
};
use screen::{Health, Screen, columns, lay_out};
use std::{
    io::IsTerminal as _,
    sync::Arc,
    time::{Duration, Instant},
};
use tokio::sync::watch;
use vmotion_api::ControllerClient;

/// Keys are looked for this often.
const KEYS_EVERY: Duration = Duration::from_millis(100);

pub(crate) async fn run(arguments: TopArguments, global: &Global) -> Result<()> {
    let client = context::client(global)?;
    // Whoever cannot answer now is told before the screen is taken.
    let first = Data::fetch(&client).await?;
    let terminal = std::io::stdout().is_terminal() && std::io::stdin().is_terminal();
    if global.json {
        return output::json(&first);
    }
    if arguments.once || !terminal {
        print_once(&first);
        return Ok(());
    }
    let url = client.url().to_owned();
    let (sender, receiver) = watch::channel(Heard { data: Arc::new(first), at: Instant::now(), trouble: None });
    let asking = tokio::spawn(ask(client, arguments.interval, sender));
    let colour = std::env::var_os("NO_COLOR").is_none();
    let screen = Screen::new(arguments.section, colour);
    let shown = tokio::task::spawn_blocking(move || {
        // Puts the terminal back when it panics, too.
        let mut terminal = ratatui::init();
        let shown = show(&mut terminal, screen, &url, receiver);
        ratatui::restore();
        shown
    });
    let shown = shown.await;
    asking.abort();
    Ok(shown??)
}

/// What was heard last.
#[derive(Clone)]
struct Heard {
    data: Arc<Data>,
    at: Instant,
    trouble: Option<String>,
}

async fn ask(client: ControllerClient, interval: Duration, heard: watch::Sender<Heard>) {
    loop {
        tokio::time::sleep(interval).await;
        let answer = Data::fetch(&client).await;
        heard.send_modify(|heard| match answer {
            Ok(data) => *heard = Heard { data: Arc::new(data), at: Instant::now(), trouble: None },
            Err(error) => heard.trouble = Some(error.to_string()),
        });
    }
}

fn show(
    terminal: &mut DefaultTerminal,
    mut screen: Screen,
    url: &str,
    mut heard: watch::Receiver<Heard>,
) -> std::io::Result<()> {
    let mut now = heard.borrow_and_update().clone();
    loop {
        // While it is paused keys still do what they do, on what was there.
        if !screen.paused {
            now = heard.borrow_and_update().clone();
        }
        let Heard { data, at, trouble } = &now;
        let health = Health { url: url.to_owned(), age_s: Some(at.elapsed().as_secs()), trouble: trouble.clone() };
        terminal.draw(|frame| screen.draw(frame, data, &health))?;
        if event::poll(KEYS_EVERY)?
            && let Event::Key(key) = event::read()?
            && key.kind == KeyEventKind::Press
            && !screen.press(key)
        {
            return Ok(());
        }
    }
}

fn print_once(data: &Data) {
    for section in Section::ALL {
        let Rows { header, rows } = data.rows(section);
        if rows.is_empty() {
            continue;
        }
        println!("{}", section.title());
        let laid_out = columns(header, &rows);
        println!("{}", lay_out(header.iter().copied(), &laid_out));
        for row in &rows {
            println!("{}", lay_out(row.iter().map(|cell| cell.text.as_str()), &laid_out));
        }
        println!();
    }
    if let Some(look) = data.policy.as_ref().and_then(|policy| policy.last_look.as_ref()) {
        println!("the policy, when it looked last: {look}");
    }
}
