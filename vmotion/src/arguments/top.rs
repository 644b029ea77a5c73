//! The options of `vmotion top`.

use clap::{Args, ValueEnum};
use std::time::Duration;

#[derive(Debug, Args)]
pub(crate) struct TopArguments {
    /// Ask the controller this often
    #[arg(long, default_value = "2s", value_name = "TIME", value_parser = interval)]
    pub(crate) interval: Duration,
    /// Begin with this
    #[arg(long, value_enum, default_value = "hosts")]
    pub(crate) section: Section,
    /// Print everything once, as plain text, and end; so it is without a terminal
    #[arg(long)]
    pub(crate) once: bool,
}

/// What is shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Section {
    /// Hosts and what they use
    Hosts,
    /// Machines and what they use
    Machines,
    /// Pieces of machines that span several hosts
    Pieces,
    /// Moves under way, and the last that ended
    Moves,
    /// Plans of the policy
    Plans,
}

impl Section {
    pub(crate) const ALL: [Self; 5] = [Self::Hosts, Self::Machines, Self::Pieces, Self::Moves, Self::Plans];

    pub(crate) const fn title(self) -> &'static str {
        match self {
            Self::Hosts => "hosts",
            Self::Machines => "machines",
            Self::Pieces => "pieces",
            Self::Moves => "moves",
            Self::Plans => "plans",
        }
    }
}

fn interval(text: &str) -> Result<Duration, String> {
    let interval = humantime::parse_duration(text).map_err(|error| format!("{error}; such as 2s or 500ms"))?;
    let possible = Duration::from_millis(200)..=Duration::from_secs(3600);
    if possible.contains(&interval) { Ok(interval) } else { Err("use 200ms to 1h".to_owned()) }
}
