//! What the screen shows of the data, and what keys change about that. Pure: no terminal, no clock.

use super::data::{Cell, Data, Rows};
use crate::arguments::Section;
use ratatui::{
    Frame,
    crossterm::event::{KeyCode, KeyEvent, KeyModifiers},
    layout::{Constraint, Layout, Rect},
    style::{Modifier, Style},
    text::{Line, Span},
    widgets::Paragraph,
};

/// Between two columns.
const GAP: usize = 2;
/// Letters of a filter.
const FILTER_MAX: usize = 60;
const HELP: [&str; 8] = [
    "Tab, 1 to 5    another section",
    "up, down, PgUp, PgDn, Home, End    scroll",
    "s, S    sort by the next column, or the one before",
    "r    the other way round",
    "/    show only rows that contain a text; Enter ends typing, Esc forgets it",
    "p    pause: what is shown stays",
    "?    this",
    "q, Ctrl-C    end",
];

/// What is shown, and how.
#[derive(Debug)]
pub(super) struct Screen {
    pub(super) section: Section,
    /// The first row that is shown.
    top: usize,
    sort: Option<usize>,
    reverse: bool,
    filter: String,
    typing: bool,
    help: bool,
    pub(super) paused: bool,
    colour: bool,
    /// Rows that fitted last: what a page is.
    page: usize,
}

/// How the controller answers.
#[derive(Debug, Default)]
pub(super) struct Health {
    pub(super) url: String,
    /// Age of the data, in s; `None` before the first.
    pub(super) age_s: Option<u64>,
    /// Why it is not newer.
    pub(super) trouble: Option<String>,
}

impl Screen {
    pub(super) const fn new(section: Section, colour: bool) -> Self {
        Self {
            section,
            top: 0,
            sort: None,
            reverse: false,
            filter: String::new(),
            typing: false,
            help: false,
            paused: false,
            colour,
            page: 1,
        }
    }

    /// What a key does; `false` ends.
    pub(super) fn press(&mut self, key: KeyEvent) -> bool {
        if key.modifiers.contains(KeyModifiers::CONTROL) {
            return key.code != KeyCode::Char('c');
        }
        if self.typing {
            match key.code {
                KeyCode::Enter => self.typing = false,
                KeyCode::Esc => (self.typing, self.filter) = (false, String::new()),
                KeyCode::Backspace => drop(self.filter.pop()),
                KeyCode::Char(letter) if self.filter.chars().count() < FILTER_MAX => self.filter.push(letter),
                _ => {}
            }
            self.top = 0;
            return true;
        }
        match key.code {
            KeyCode::Char('q') => return false,
            KeyCode::Char('?') => self.help = !self.help,
            KeyCode::Char('p') => self.paused = !self.paused,
            KeyCode::Char('/') => self.typing = true,
            KeyCode::Esc => (self.help, self.filter) = (false, String::new()),
            KeyCode::Char('s') => self.sort = Some(self.sort.map_or(0, |column| column + 1)),
            KeyCode::Char('S') => self.sort = self.sort.and_then(|column| column.checked_sub(1)),
            KeyCode::Char('r') => self.reverse = !self.reverse,
            KeyCode::Tab => self.turn(1),
            KeyCode::BackTab => self.turn(Section::ALL.len() - 1),
            KeyCode::Char(digit @ '1'..='5') => {
                let at = digit.to_digit(10).map_or(0, |digit| digit as usize - 1);
                self.show(Section::ALL[at]);
            }
            KeyCode::Up => self.top = self.top.saturating_sub(1),
            KeyCode::Down => self.top = self.top.saturating_add(1),
            KeyCode::PageUp => self.top = self.top.saturating_sub(self.page),
            KeyCode::PageDown => self.top = self.top.saturating_add(self.page),
            KeyCode::Home => self.top = 0,
            KeyCode::End => self.top = usize::MAX,
            _ => {}
        }
        true
    }

    fn turn(&mut self, by: usize) {
        let at = Section::ALL.iter().position(|section| *section == self.section).unwrap_or(0);
        self.show(Section::ALL[(at + by) % Section::ALL.len()]);
    }

    const fn show(&mut self, section: Section) {
        self.section = section;
        (self.top, self.sort, self.reverse) = (0, None, false);
    }

    /// Rows as they are to be shown.
    pub(super) fn chosen(&mut self, data: &Data) -> Rows {
        let Rows { header, mut rows } = data.rows(self.section);
        let wanted = self.filter.to_lowercase();
        rows.retain(|row| row.iter().any(|cell| cell.text.to_lowercase().contains(&wanted)));
        if let Some(column) = self.sort {
            let column = column % header.len();
            self.sort = Some(column);
            // Large figures first, names in their order.
            rows.sort_by(|a, b| compare(&a[column], &b[column]));
        }
        if self.reverse {
            rows.reverse();
        }
        Rows { header, rows }
    }

    /// Draws everything. However small the terminal: what does not fit is not there.
    pub(super) fn draw(&mut self, frame: &mut Frame<'_>, data: &Data, health: &Health) {
        let [head, tabs, header, body, foot] = Layout::vertical([
            Constraint::Length(1),
            Constraint::Length(1),
            Constraint::Length(1),
            Constraint::Min(0),
            Constraint::Length(1),
        ])
        .areas(frame.area());
        frame.render_widget(self.head(health), head);
        frame.render_widget(self.tabs(data), tabs);
        if self.help {
            frame.render_widget(Paragraph::new(HELP.map(Line::raw).to_vec()), body);
            return;
        }
        let rows = self.chosen(data);
        let count = rows.rows.len();
        self.page = usize::from(body.height).max(1);
        self.top = self.top.min(count.saturating_sub(self.page));
        let seen = &rows.rows[self.top..(self.top + usize::from(body.height)).min(count)];
        let laid_out = columns(rows.header, seen);
        let mut names: Vec<String> = rows.header.iter().map(|name| (*name).to_owned()).collect();
        if let Some(name) = self.sort.and_then(|column| names.get_mut(column)) {
            name.insert(0, '*');
        }
        let line = lay_out(names.iter().map(String::as_str), &laid_out);
        frame.render_widget(Paragraph::new(line).style(Style::new().add_modifier(Modifier::BOLD)), header);
        let lines: Vec<Line<'_>> =
            seen.iter().map(|row| Line::raw(lay_out(row.iter().map(|cell| cell.text.as_str()), &laid_out))).collect();
        frame.render_widget(Paragraph::new(lines), body);
        self.foot(frame, foot, count);
    }

    fn head(&self, health: &Health) -> Line<'static> {
        let age = health.age_s.map_or_else(|| "nothing heard yet".to_owned(), |age| format!("{age} s ago"));
        let paused = if self.paused { "  PAUSED" } else { "" };
        let mut spans = vec![Span::raw(format!("{}  {age}{paused}", health.url))];
        if let Some(trouble) = &health.trouble {
            let style = if self.colour { Style::new().fg(ratatui::style::Color::Red) } else { Style::new() };
            spans.push(Span::styled(format!("  {trouble}"), style.add_modifier(Modifier::BOLD)));
        }
        Line::from(spans)
    }

    fn tabs(&self, data: &Data) -> Line<'static> {
        let tab = |(at, section): (usize, &Section)| {
            let count = match section {
                Section::Hosts => data.hosts.len(),
                Section::Machines => data.machines.len(),
                Section::Pieces => data.machines.iter().map(|machine| machine.pieces.len()).sum(),
                Section::Moves => data.moves.iter().filter(|operation| operation.outcome.is_none()).count(),
                Section::Plans => {
                    data.plans.iter().filter(|plan| plan.state == vmotion_api::PlanState::Running).count()
                }
            };
            let style =
                if *section == self.section { Style::new().add_modifier(Modifier::REVERSED) } else { Style::new() };
            [Span::styled(format!("{} {} {count}", at + 1, section.title()), style), Span::raw("  ")]
        };
        Line::from(Section::ALL.iter().enumerate().flat_map(tab).collect::<Vec<_>>())
    }

    fn foot(&self, frame: &mut Frame<'_>, area: Rect, count: usize) {
        let filter = match (self.typing, self.filter.as_str()) {
            (true, filter) => format!("/{filter}_  "),
            (false, "") => String::new(),
            (false, filter) => format!("only {filter:?}  "),
        };
        let text = format!("{filter}{count} rows  ? for help  q ends");
        frame.render_widget(Paragraph::new(text), area);
    }
}

fn compare(a: &Cell, b: &Cell) -> std::cmp::Ordering {
    match (a.number, b.number) {
        (Some(a), Some(b)) => b.total_cmp(&a),
        (Some(_), None) => std::cmp::Ordering::Less,
        (None, Some(_)) => std::cmp::Ordering::Greater,
        (None, None) => a.text.cmp(&b.text),
    }
}

/// How a column is laid out.
#[derive(Debug)]
pub(super) struct Column {
    /// In letters.
    width: usize,
    /// Figures to the right, names to the left.
    right: bool,
}

/// The columns of these rows.
pub(super) fn columns(header: &[&str], rows: &[Vec<Cell>]) -> Vec<Column> {
    let column = |(at, name): (usize, &&str)| {
        let cells = || rows.iter().filter_map(|row| row.get(at));
        let widest = cells().map(|cell| cell.text.chars().count()).max().unwrap_or(0);
        // One more for the mark of the column that is sorted by.
        let width = widest.max(name.chars().count() + 1);
        Column { width, right: cells().any(|cell| cell.number.is_some()) }
    };
    header.iter().enumerate().map(column).collect()
}

/// A row as text.
pub(super) fn lay_out<'t>(texts: impl Iterator<Item = &'t str>, columns: &[Column]) -> String {
    let gap = " ".repeat(GAP);
    let mut line = String::new();
    for (at, (text, Column { width, right })) in texts.zip(columns).enumerate() {
        if at > 0 {
            line += &gap;
        }
        line += &if *right { format!("{text:>width$}") } else { format!("{text:<width$}") };
    }
    line.truncate(line.trim_end().len());
    line
}

#[cfg(test)]
mod tests {
    use super::*;
    use ratatui::{Terminal, backend::TestBackend};
    use vmotion_api::MachineView;
    use vmotion_model::{Epoch, MachineState};

    fn machines(count: usize) -> Data {
        let machine = |at: usize| -> MachineView {
            let spec = serde_json::from_value(serde_json::json!({
                "name": format!("vm{at:05}"), "cpus": at % 7 + 1, "memory": 1 << 30, "kernel": "/k"
            }))
            .unwrap();
            MachineView {
                name: format!("vm{at:05}").parse().unwrap(),
                spec,
                host: "h1".parse().unwrap(),
                epoch: Epoch(1),
                state: MachineState::Running,
                reason: None,
                move_id: None,
                console_bytes: 0,
                pid: None,
                pieces: Vec::new(),
            }
        };
        Data { machines: (0..count).map(machine).collect(), ..Data::default() }
    }

    fn drawn(screen: &mut Screen, data: &Data, health: &Health, size: (u16, u16)) -> Vec<String> {
        let mut terminal = Terminal::new(TestBackend::new(size.0, size.1)).unwrap();
        terminal.draw(|frame| screen.draw(frame, data, health)).unwrap();
        let buffer = terminal.backend().buffer().clone();
        let line =
            |y| (0..size.0).map(|x| buffer[(x, y)].symbol().to_owned()).collect::<String>().trim_end().to_owned();
        (0..size.1).map(line).collect()
    }

    fn press(screen: &mut Screen, keys: &str) {
        for letter in keys.chars() {
            let code = match letter {
                '\n' => KeyCode::Enter,
                '\t' => KeyCode::Tab,
                '$' => KeyCode::End,
                letter => KeyCode::Char(letter),
            };
            assert!(screen.press(KeyEvent::from(code)));
        }
    }

    #[test]
    fn sections_filters_and_sorting_are_a_key_each() {
        let (data, health) = (machines(9), Health { url: "https://c".into(), age_s: Some(1), trouble: None });
        let mut screen = Screen::new(Section::Hosts, false);
        let lines = drawn(&mut screen, &data, &health, (100, 12));
        assert!(lines[0].starts_with("https://c  1 s ago") && lines[1].contains("2 machines 9"), "{lines:#?}");
        press(&mut screen, "\t");
        let lines = drawn(&mut screen, &data, &health, (100, 14));
        assert!(lines[2].starts_with("MACHINE") && lines[3].starts_with("vm00000") && lines[11].starts_with("vm00008"));
        press(&mut screen, "/0003\n");
        let lines = drawn(&mut screen, &data, &health, (100, 14));
        assert!(
            lines[3].starts_with("vm00003") && lines[4].is_empty() && lines[13].starts_with("only \"0003\"  1 rows")
        );
        screen.press(KeyEvent::from(KeyCode::Esc));
        press(&mut screen, "ssss");
        let lines = drawn(&mut screen, &data, &health, (100, 14));
        assert!(lines[2].contains("*VCPUS") && lines[3].starts_with("vm00006"), "{lines:#?}");
        press(&mut screen, "r?");
        assert!(drawn(&mut screen, &data, &health, (100, 14))[3].contains("another section"));
        assert!(!screen.press(KeyEvent::from(KeyCode::Char('q'))));
    }

    #[test]
    fn ten_thousand_machines_are_scrolled_to_their_end() {
        let (data, health) = (machines(10_000), Health::default());
        let mut screen = Screen::new(Section::Machines, false);
        press(&mut screen, "$");
        let lines = drawn(&mut screen, &data, &health, (80, 24));
        assert!(lines[22].starts_with("vm09999"), "{lines:#?}");
        press(&mut screen, "/nobody");
        let lines = drawn(&mut screen, &data, &health, (80, 24));
        assert!(lines[3].is_empty() && lines[23].contains("0 rows"), "{lines:#?}");
    }

    #[test]
    fn a_controller_that_is_gone_is_told_and_no_terminal_is_too_small() {
        let health = Health { url: "https://c".into(), age_s: Some(70), trouble: Some("no answer".into()) };
        let mut screen = Screen::new(Section::Machines, true);
        let data = machines(3);
        assert_eq!(drawn(&mut screen, &data, &health, (60, 8))[0], "https://c  70 s ago  no answer");
        for size in [(1, 1), (20, 5), (3, 2), (200, 1), (1, 60)] {
            for section in Section::ALL {
                screen.section = section;
                drawn(&mut screen, &data, &health, size);
                drawn(&mut screen, &Data::default(), &Health::default(), size);
            }
        }
    }
}
