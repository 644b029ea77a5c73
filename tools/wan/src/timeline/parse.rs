//! A timeline as text. One statement a line; `#` begins a comment.
//!
//! ```text
//! statement  = "at" TIME what | "every" TIME ["from" TIME] what
//! what       = ["a-to-b" | "b-to-a" | "both"] change
//! change     = "cut" ["for" TIME] | "restore" | FIELD=VALUE …
//! ```

use super::{Change, Step, Timeline};
use crate::{
    direction::Direction,
    setting::{Setting, SettingError},
    units::{self, UnitError},
};
use std::{str::FromStr, time::Duration};

/// A period below this would only keep the processor busy.
const PERIOD_MIN: Duration = Duration::from_millis(1);
const STATEMENT: &str = "write `at TIME …` or `every TIME [from TIME] …`";
const CHANGE: &str = "write `cut`, `cut for TIME`, `restore` or settings such as `rate=100Mbit loss=1%`";

/// Why a timeline was refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("line {line}: {reason}")]
pub struct TimelineError {
    /// Counted from 1.
    pub line: usize,
    /// What is wrong with it.
    pub reason: StatementError,
}

/// Why a statement was refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum StatementError {
    /// A word that does not belong there.
    #[error("{found:?} is not understood: {allowed}")]
    Word {
        /// The word.
        found: String,
        /// What could stand in its place.
        allowed: &'static str,
    },
    /// The statement ends too early.
    #[error("something is missing at the end: {allowed}")]
    Missing {
        /// What could follow.
        allowed: &'static str,
    },
    /// A time that is none.
    #[error("{word}: {error}")]
    Time {
        /// The word before the time.
        word: &'static str,
        /// The value, and what is allowed.
        error: UnitError,
    },
    /// A setting that is none.
    #[error(transparent)]
    Setting(#[from] SettingError),
}

impl FromStr for Timeline {
    type Err = TimelineError;

    fn from_str(text: &str) -> Result<Self, TimelineError> {
        let mut timeline = Self::default();
        for (line, statement) in (1..).zip(text.lines()) {
            let statement = statement.split('#').next().unwrap_or_default();
            if !statement.trim().is_empty() {
                timeline.add_statement(statement).map_err(|reason| TimelineError { line, reason })?;
            }
        }
        Ok(timeline)
    }
}

impl Timeline {
    /// Adds one statement, such as `at 12s cut`.
    ///
    /// # Errors
    /// [`StatementError`], which names what is allowed.
    pub fn add_statement(&mut self, statement: &str) -> Result<(), StatementError> {
        let mut words = Words(statement.split_whitespace().collect());
        let (first, every) = match words.take(STATEMENT)? {
            "at" => (words.time("at", Duration::ZERO)?, None),
            "every" => {
                let period = words.time("every", PERIOD_MIN)?;
                let first = if words.skip("from") { words.time("from", Duration::ZERO)? } else { period };
                (first, Some(period))
            }
            other => return Err(StatementError::Word { found: other.to_owned(), allowed: STATEMENT }),
        };
        let direction = words.direction();
        for (after, change) in words.changes()? {
            let step = Step { direction, change };
            match every {
                None => self.at(first + after, step),
                Some(period) => self.every(period, first + after, step),
            }
        }
        Ok(())
    }
}

/// What is left of a statement.
struct Words<'a>(std::collections::VecDeque<&'a str>);

impl<'a> Words<'a> {
    fn take(&mut self, allowed: &'static str) -> Result<&'a str, StatementError> {
        self.0.pop_front().ok_or(StatementError::Missing { allowed })
    }

    fn skip(&mut self, word: &str) -> bool {
        let there = self.0.front() == Some(&word);
        if there {
            self.0.pop_front();
        }
        there
    }

    fn time(&mut self, word: &'static str, min: Duration) -> Result<Duration, StatementError> {
        let text = self.take(units::DURATION_ALLOWED)?;
        let error = |error| StatementError::Time { word, error };
        let time = units::parse_duration(text).map_err(error)?;
        let refused = || error(UnitError::new(text, "write at least 1ms"));
        (time >= min).then_some(time).ok_or_else(refused)
    }

    /// `None`: both.
    fn direction(&mut self) -> Option<Direction> {
        let direction = Direction::BOTH.into_iter().find(|direction| self.0.front() == Some(&&*direction.to_string()));
        if direction.is_some() {
            self.0.pop_front();
        } else {
            self.skip("both");
        }
        direction
    }

    /// What changes, and how long after the statement's time.
    fn changes(&mut self) -> Result<Vec<(Duration, Change)>, StatementError> {
        let mut changes = Vec::new();
        if self.skip("cut") {
            changes.push((Duration::ZERO, Change::Cut));
            if self.skip("for") {
                changes.push((self.time("for", Duration::ZERO)?, Change::Restore));
            }
        } else if self.skip("restore") {
            changes.push((Duration::ZERO, Change::Restore));
        } else {
            let mut settings = vec![self.setting(CHANGE)?];
            while !self.0.is_empty() {
                settings.push(self.setting(CHANGE)?);
            }
            changes.push((Duration::ZERO, Change::Set(settings)));
        }
        match self.0.front() {
            None => Ok(changes),
            Some(word) => Err(StatementError::Word { found: (*word).to_owned(), allowed: "the line should end here" }),
        }
    }

    fn setting(&mut self, allowed: &'static str) -> Result<Setting, StatementError> {
        let word = self.take(allowed)?;
        let refused = || StatementError::Word { found: word.to_owned(), allowed };
        let (name, value) = word.split_once('=').ok_or_else(refused)?;
        Ok(Setting::parse(name, value)?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn play(text: &str, until: Duration) -> Vec<String> {
        let mut timeline: Timeline = text.parse().unwrap();
        std::iter::from_fn(|| timeline.take_due(until)).map(|(at, step)| format!("{at:?} {step}")).collect()
    }

    #[test]
    fn statements_happen_in_the_order_of_their_times() {
        let text = "
            # a link that suffers
            at 30s b-to-a rate=100Mbit loss=1%  # one way
            at 12s cut
            at 22s restore
            at 22s a-to-b delay=80ms
        ";
        assert_eq!(
            play(text, Duration::from_secs(60)),
            ["12s both cut", "22s both restore", "22s a-to-b delay=80ms", "30s b-to-a rate=100Mbit loss=1%"]
        );
    }

    #[test]
    fn periods_repeat_and_cuts_end_by_themselves() {
        let text = "every 10s from 4s cut for 500ms";
        assert_eq!(
            play(text, Duration::from_secs(20)),
            ["4s both cut", "4.5s both restore", "14s both cut", "14.5s both restore"]
        );
        assert_eq!(play("every 10s both loss=1%", Duration::from_secs(15)), ["10s both loss=1%"]);
    }

    #[test]
    fn nothing_is_due_before_its_time() {
        let mut timeline: Timeline = "at 2s cut".parse().unwrap();
        assert_eq!(timeline.take_due(Duration::from_secs(1)), None);
        assert_eq!(timeline.next_due(), Some(Duration::from_secs(2)));
        assert!(timeline.take_due(Duration::from_secs(2)).is_some());
        assert!(timeline.is_empty());
    }

    #[test]
    fn errors_name_line_value_and_what_is_allowed() {
        for (text, words) in [
            ("\n  at 12 cut", vec!["line 2", "at: ", "\"12\"", "unit"]),
            ("at 12s", vec!["line 1", "missing", "restore"]),
            ("at 12s rate=100", vec!["line 1", "rate: ", "\"100\"", "Mbit"]),
            ("at 12s speed=1Mbit", vec!["\"speed\"", "rate, queue"]),
            ("at 12s c-to-d cut", vec!["\"c-to-d\"", "cut for TIME"]),
            ("at 12s cut now", vec!["\"now\"", "end here"]),
            ("in 12s cut", vec!["\"in\"", "every TIME"]),
            ("every 0 cut", vec!["every: ", "1ms"]),
            ("at 1s cut for ever", vec!["for: ", "\"ever\""]),
        ] {
            let error = text.parse::<Timeline>().unwrap_err().to_string();
            assert!(words.iter().all(|word| error.contains(word)), "{text}: {error}");
        }
    }
}
