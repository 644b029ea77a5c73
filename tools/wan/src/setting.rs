//! One impairment as text: `rate=1Gbit`. The command line and timelines share the names and what they allow.

use crate::{
    impairments::{BurstLoss, Distribution, HOLD_MAX, Impairments, Reorder},
    units::{self, BitRate, Probability, UnitError},
};
use std::{fmt, time::Duration};

/// A name an impairment has in text.
#[derive(Debug)]
pub struct Field {
    /// As in `name=value` and `--name value`.
    pub name: &'static str,
    /// The form of its value.
    pub form: &'static str,
    /// What it does, in a line.
    pub help: &'static str,
    parse: fn(&str) -> Result<Setting, UnitError>,
}

/// Every impairment that has a name.
pub const FIELDS: [Field; 11] = [
    Field {
        name: "rate",
        form: "RATE",
        help: "Speed of the bottleneck, such as 800Mbit, or `unlimited` [default: unlimited]",
        parse: |text| Ok(Setting::Rate(unless("unlimited", text, str::parse)?)),
    },
    Field {
        name: "queue",
        form: "BYTES",
        help: "What waits for the bottleneck before packets are dropped, such as 256K, or `auto` [default: rate × twice the delay, at least 256K]",
        parse: |text| Ok(Setting::Queue(unless("auto", text, units::parse_bytes)?)),
    },
    Field {
        name: "delay",
        form: "TIME",
        help: "One way, such as 50ms [default: 0]",
        parse: |text| Ok(Setting::Delay(hold(text)?)),
    },
    Field {
        name: "jitter",
        form: "TIME",
        help: "How much the delay varies, up and down [default: 0]",
        parse: |text| Ok(Setting::Jitter(hold(text)?)),
    },
    Field {
        name: "jitter-distribution",
        form: "NAME",
        help: "`uniform`, or `normal` with the jitter as standard deviation [default: uniform]",
        parse: |text| Ok(Setting::JitterDistribution(distribution(text)?)),
    },
    Field {
        name: "jitter-reorder",
        form: "YES|NO",
        help: "Whether jitter may change the order of packets [default: no]",
        parse: |text| Ok(Setting::JitterReorder(yes_or_no(text)?)),
    },
    Field {
        name: "loss",
        form: "PERCENT",
        help: "Packets lost each by itself, such as 0.1% [default: 0%]",
        parse: |text| Ok(Setting::Loss(text.parse()?)),
    },
    Field {
        name: "burst-loss",
        form: "ENTER,LEAVE[,LOSS]",
        help: "Gilbert-Elliott: chance to enter and to leave the bad state, and loss within [default: 100%], such as 0.1%,20%; or `none`",
        parse: |text| Ok(Setting::BurstLoss(unless("none", text, burst_loss)?)),
    },
    Field {
        name: "reorder",
        form: "PERCENT,TIME",
        help: "Packets held back, and how long, for others to overtake them, such as 1%,500us; or `none`",
        parse: |text| Ok(Setting::Reorder(unless("none", text, reorder)?)),
    },
    Field {
        name: "duplicate",
        form: "PERCENT",
        help: "Packets that arrive twice [default: 0%]",
        parse: |text| Ok(Setting::Duplicate(text.parse()?)),
    },
    Field {
        name: "cut",
        form: "YES|NO",
        help: "Whether everything is lost [default: no]",
        parse: |text| Ok(Setting::Cut(yes_or_no(text)?)),
    },
];

/// A new value of one impairment.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Setting {
    /// [`Impairments::rate`].
    Rate(Option<BitRate>),
    /// [`Impairments::queue`].
    Queue(Option<u64>),
    /// [`Impairments::delay`].
    Delay(Duration),
    /// [`Impairments::jitter`].
    Jitter(Duration),
    /// [`Impairments::jitter_distribution`].
    JitterDistribution(Distribution),
    /// [`Impairments::jitter_reorder`].
    JitterReorder(bool),
    /// [`Impairments::loss`].
    Loss(Probability),
    /// [`Impairments::burst_loss`].
    BurstLoss(Option<BurstLoss>),
    /// [`Impairments::reorder`].
    Reorder(Option<Reorder>),
    /// [`Impairments::duplicate`].
    Duplicate(Probability),
    /// [`Impairments::cut`].
    Cut(bool),
}

/// Why a setting was refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SettingError {
    /// No such field.
    #[error("{name:?} is no impairment: there are {}", FIELDS.map(|field| field.name).join(", "))]
    Name {
        /// What was written.
        name: String,
    },
    /// The field does not take this value.
    #[error("{field}: {error}")]
    Value {
        /// Which field.
        field: &'static str,
        /// Its value, and what is allowed.
        error: UnitError,
    },
}

impl Setting {
    /// The value `value` of the field `name`.
    ///
    /// # Errors
    /// [`SettingError`], which names what is allowed.
    pub fn parse(name: &str, value: &str) -> Result<Self, SettingError> {
        let unknown = || SettingError::Name { name: name.to_owned() };
        let field = FIELDS.iter().find(|field| field.name == name).ok_or_else(unknown)?;
        (field.parse)(value).map_err(|error| SettingError::Value { field: field.name, error })
    }

    /// Puts the value where it belongs.
    pub const fn apply(self, to: &mut Impairments) {
        match self {
            Self::Rate(rate) => to.rate = rate,
            Self::Queue(bytes) => to.queue = bytes,
            Self::Delay(time) => to.delay = time,
            Self::Jitter(time) => to.jitter = time,
            Self::JitterDistribution(distribution) => to.jitter_distribution = distribution,
            Self::JitterReorder(allowed) => to.jitter_reorder = allowed,
            Self::Loss(probability) => to.loss = probability,
            Self::BurstLoss(burst_loss) => to.burst_loss = burst_loss,
            Self::Reorder(reorder) => to.reorder = reorder,
            Self::Duplicate(probability) => to.duplicate = probability,
            Self::Cut(cut) => to.cut = cut,
        }
    }
}

impl fmt::Display for Setting {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Rate(None) => write!(f, "rate=unlimited"),
            Self::Rate(Some(rate)) => write!(f, "rate={rate}"),
            Self::Queue(None) => write!(f, "queue=auto"),
            Self::Queue(Some(bytes)) => write!(f, "queue={bytes}"),
            Self::Delay(time) => write!(f, "delay={time:?}"),
            Self::Jitter(time) => write!(f, "jitter={time:?}"),
            Self::JitterDistribution(Distribution::Uniform) => write!(f, "jitter-distribution=uniform"),
            Self::JitterDistribution(Distribution::Normal) => write!(f, "jitter-distribution=normal"),
            Self::JitterReorder(allowed) => write!(f, "jitter-reorder={}", shown(*allowed)),
            Self::Loss(probability) => write!(f, "loss={probability}"),
            Self::BurstLoss(None) => write!(f, "burst-loss=none"),
            Self::BurstLoss(Some(BurstLoss { enter, leave, loss })) => write!(f, "burst-loss={enter},{leave},{loss}"),
            Self::Reorder(None) => write!(f, "reorder=none"),
            Self::Reorder(Some(Reorder { probability, by })) => write!(f, "reorder={probability},{by:?}"),
            Self::Duplicate(probability) => write!(f, "duplicate={probability}"),
            Self::Cut(cut) => write!(f, "cut={}", shown(*cut)),
        }
    }
}

fn unless<T>(word: &str, text: &str, parse: impl FnOnce(&str) -> Result<T, UnitError>) -> Result<Option<T>, UnitError> {
    if text == word { Ok(None) } else { parse(text).map(Some) }
}

fn hold(text: &str) -> Result<Duration, UnitError> {
    let time = units::parse_duration(text)?;
    let refused = || UnitError::new(text, "a packet is held for at most 60s");
    (time <= HOLD_MAX).then_some(time).ok_or_else(refused)
}

fn distribution(text: &str) -> Result<Distribution, UnitError> {
    match text {
        "uniform" => Ok(Distribution::Uniform),
        "normal" => Ok(Distribution::Normal),
        _ => Err(UnitError::new(text, "write uniform or normal")),
    }
}

fn yes_or_no(text: &str) -> Result<bool, UnitError> {
    match text {
        "yes" => Ok(true),
        "no" => Ok(false),
        _ => Err(UnitError::new(text, "write yes or no")),
    }
}

const fn shown(yes: bool) -> &'static str {
    if yes { "yes" } else { "no" }
}

fn burst_loss(text: &str) -> Result<BurstLoss, UnitError> {
    let parts: Vec<&str> = text.split(',').collect();
    let (enter, leave, loss) = match parts[..] {
        [enter, leave] => (enter, leave, "100%"),
        [enter, leave, loss] => (enter, leave, loss),
        _ => {
            let allowed =
                "write the chance to enter, the chance to leave and optionally the loss within, such as 0.1%,20%,100%";
            return Err(UnitError::new(text, allowed));
        }
    };
    Ok(BurstLoss { enter: enter.parse()?, leave: leave.parse()?, loss: loss.parse()? })
}

fn reorder(text: &str) -> Result<Reorder, UnitError> {
    let allowed = "write the chance and how long a packet is held back, such as 1%,500us";
    let (probability, by) = text.split_once(',').ok_or_else(|| UnitError::new(text, allowed))?;
    Ok(Reorder { probability: probability.parse()?, by: hold(by)? })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<Setting, SettingError> {
        let (name, value) = text.split_once('=').unwrap();
        Setting::parse(name, value)
    }

    #[test]
    fn what_is_shown_reads_back() {
        for text in [
            "rate=800Mbit",
            "rate=unlimited",
            "queue=262144",
            "queue=auto",
            "delay=50ms",
            "jitter=1.5ms",
            "jitter-distribution=normal",
            "jitter-reorder=yes",
            "loss=0.1%",
            "burst-loss=0.1%,20%,100%",
            "burst-loss=none",
            "reorder=1%,500µs",
            "reorder=none",
            "duplicate=2%",
            "cut=yes",
        ] {
            let setting = read(text).unwrap();
            assert_eq!(setting.to_string(), text);
            assert_eq!(read(&setting.to_string()).unwrap(), setting);
        }
    }

    #[test]
    fn every_field_reaches_its_impairment() {
        let mut link = Impairments::default();
        for text in ["rate=1Gbit", "queue=1M", "delay=2ms", "jitter=1ms", "loss=1%", "burst-loss=1%,50%", "cut=yes"] {
            read(text).unwrap().apply(&mut link);
        }
        let expected = Impairments {
            rate: Some(BitRate::mbit(1000)),
            queue: Some(1 << 20),
            delay: Duration::from_millis(2),
            jitter: Duration::from_millis(1),
            loss: Probability::percent(1.0),
            burst_loss: Some(BurstLoss {
                enter: Probability::percent(1.0),
                leave: Probability::percent(50.0),
                loss: Probability::ALWAYS,
            }),
            cut: true,
            ..Default::default()
        };
        assert_eq!(link, expected);
    }

    #[test]
    fn errors_name_field_value_and_what_is_allowed() {
        for (text, words) in [
            ("speed=1", vec!["\"speed\"", "rate, queue, delay"]),
            ("rate=100", vec!["rate: ", "\"100\"", "Mbit"]),
            ("delay=2min", vec!["delay: ", "\"2min\"", "60s"]),
            ("loss=1", vec!["loss: ", "\"1\"", "percent"]),
            ("burst-loss=1%", vec!["burst-loss: ", "enter"]),
            ("reorder=1%", vec!["reorder: ", "held back"]),
            ("jitter-distribution=pareto", vec!["uniform or normal"]),
            ("cut=1", vec!["yes or no"]),
            ("queue=1Q", vec!["queue: ", "256K"]),
        ] {
            let error = read(text).unwrap_err().to_string();
            assert!(words.iter().all(|word| error.contains(word)), "{text}: {error}");
        }
    }
}
