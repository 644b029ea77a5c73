//! `vmotion console`: one stream of output, whatever host the machine is on.

use crate::{
    arguments::{ConsoleArguments, Global},
    context,
};
use anyhow::Result;
use bytes::Bytes;
use futures::StreamExt as _;
use rustix::termios::{self, OptionalActions, Termios};
use std::{
    io::{IsTerminal as _, Write as _},
    time::Duration,
};
use tokio::io::AsyncReadExt as _;
use vmotion_api::{ConsoleQuery, ControllerClient};
use vmotion_model::{ErrorCode, MachineName, MachineState};

/// Ctrl-], as telnet and virsh have it.
const ESCAPE: u8 = 0x1d;
const RETRY: Duration = Duration::from_millis(50);

pub(super) async fn run(arguments: ConsoleArguments, global: &Global) -> Result<()> {
    let client = context::client(global)?;
    let ConsoleArguments { machine, no_follow } = arguments;
    client.machine(&machine).await?;
    let _raw = RawTerminal::enter(!no_follow);
    let typing = tokio::spawn(type_in(client.clone(), machine.clone(), !no_follow));
    let result = tokio::select! {
        result = show(&client, &machine, !no_follow) => result,
        // Ends when the escape was typed; never when there is nothing to type from.
        _ = typing => Ok(()),
        _ = tokio::signal::ctrl_c() => Ok(()),
    };
    if std::io::stdout().is_terminal() {
        println!("\r");
    }
    result
}

/// Prints from where the last stream ended. After a move the next one comes from another host, at the same offset.
async fn show(client: &ControllerClient, machine: &MachineName, follow: bool) -> Result<()> {
    let mut offset = None;
    loop {
        match client.console(machine, ConsoleQuery { offset, follow }).await {
            Ok((start, mut stream)) => {
                if let Some(wanted) = offset.filter(|wanted| *wanted < start) {
                    eprintln!("\r\n[{} bytes of output stayed on another host]\r", start - wanted);
                }
                let mut at = start;
                while let Some(Ok(bytes)) = stream.next().await {
                    at += bytes.len() as u64;
                    let mut stdout = std::io::stdout().lock();
                    stdout.write_all(&bytes)?;
                    stdout.flush()?;
                }
                offset = Some(at);
            }
            Err(error)
                if error.code().is_some_and(|code| code != ErrorCode::NotFound && code != ErrorCode::Unavailable) =>
            {
                return Err(error.into());
            }
            Err(error) => tracing::debug!(%error, "asking again"),
        }
        if !follow {
            return Ok(());
        }
        match client.machine(machine).await {
            Ok(view) if matches!(view.state, MachineState::Stopped | MachineState::Failed) => {
                eprintln!("\r\n[{machine} {}]\r", view.reason.unwrap_or_else(|| "ended".to_owned()));
                return Ok(());
            }
            Err(error) if error.code() == Some(ErrorCode::NotFound) => return Ok(()),
            _ => tokio::time::sleep(RETRY).await,
        }
    }
}

async fn type_in(client: ControllerClient, machine: MachineName, wanted: bool) {
    if !wanted || !std::io::stdin().is_terminal() {
        // Input from a pipe is typed too, but its end does not end the console.
        if wanted {
            let mut text = Vec::new();
            if tokio::io::stdin().read_to_end(&mut text).await.is_ok() && !text.is_empty() {
                send(&client, &machine, text).await;
            }
        }
        return std::future::pending().await;
    }
    let mut buffer = [0; 256];
    while let Ok(count) = tokio::io::stdin().read(&mut buffer).await {
        let typed = &buffer[..count];
        if count == 0 || typed.contains(&ESCAPE) {
            return;
        }
        send(&client, &machine, typed.to_vec()).await;
    }
}

async fn send(client: &ControllerClient, machine: &MachineName, text: Vec<u8>) {
    if let Err(error) = client.console_input(machine, Bytes::from(text)).await {
        eprintln!("\r\n[not typed: {error}]\r");
    }
}

/// A terminal that passes keys on as they are typed; restored when dropped.
struct RawTerminal(Option<Termios>);

impl RawTerminal {
    fn enter(wanted: bool) -> Self {
        let stdin = std::io::stdin();
        if !wanted || !stdin.is_terminal() {
            return Self(None);
        }
        let Ok(before) = termios::tcgetattr(&stdin) else { return Self(None) };
        let mut raw = before.clone();
        raw.make_raw();
        let _ = termios::tcsetattr(&stdin, OptionalActions::Now, &raw);
        eprintln!("[Ctrl-] ends]\r");
        Self(Some(before))
    }
}

impl Drop for RawTerminal {
    fn drop(&mut self) {
        if let Some(before) = &self.0 {
            let _ = termios::tcsetattr(std::io::stdin(), OptionalActions::Now, before);
        }
    }
}
