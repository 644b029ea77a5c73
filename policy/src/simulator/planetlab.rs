//! The published traces of PlanetLab: a file for each machine, a percentage on each line.

use super::{DAY, DAYS_MAX, fleet::Trace, recorded::usual_memory_use};
use thiserror::Error;
use vmotion_model::ByteSize;

/// Why a file is not one of the PlanetLab traces.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum PlanetLabError {
    /// A line is something else.
    #[error("line {line}: {text:?} is not valid: each line is a percentage from 0 to 100")]
    Line {
        /// From 1.
        line: usize,
        /// As it is, its beginning where it is long.
        text: String,
    },
    /// There is no line.
    #[error("it is empty: write one percentage on each line, for every five minutes, or remove the file")]
    Empty,
    /// There are too many lines.
    #[error("it has more than {} lines, which are {DAYS_MAX} days: cut it", DAYS_MAX * DAY)]
    Long,
}

/// A machine with `vcpus` vCPUs and `memory`, from the text of a file of the PlanetLab traces: a line for every five minutes, each a
/// percentage of its vCPUs. It lives from the beginning on.
///
/// # Errors
/// On the first line that is no percentage, and when there is none, or more than are simulated.
pub fn planetlab(text: &str, vcpus: u32, memory: ByteSize) -> Result<Trace, PlanetLabError> {
    let lines = text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty());
    let percents = lines.map(|(at, line)| {
        let refused = || PlanetLabError::Line { line: at + 1, text: line.chars().take(40).collect() };
        let percent: f32 = line.trim().parse().map_err(|_| refused())?;
        if (0.0..=100.0).contains(&percent) { Ok(percent / 100.0 * vcpus as f32) } else { Err(refused()) }
    });
    let cpus = percents.collect::<Result<Vec<f32>, _>>()?;
    match cpus.len() {
        0 => Err(PlanetLabError::Empty),
        long if long > DAYS_MAX * DAY => Err(PlanetLabError::Long),
        _ => Ok(Trace { vcpus, memory, memory_use: usual_memory_use(vcpus, memory), lives: 0..cpus.len(), cpus }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn planetlab_files_are_read_and_others_refused_by_line() {
        let read = |text: &str, vcpus| planetlab(text, vcpus, ByteSize::gib(1));
        let trace = read("50\n0\n\n100\n", 4).unwrap();
        assert_eq!((trace.cpus, trace.lives), (vec![2.0, 0.0, 4.0], 0..3));
        assert_eq!(read("50\nx\n", 4).unwrap_err(), PlanetLabError::Line { line: 2, text: "x".to_owned() });
        for bad in ["101", "-1", "NaN", "inf"] {
            assert!(read(bad, 1).is_err(), "{bad}");
        }
        assert_eq!(read("\n \n", 1).unwrap_err(), PlanetLabError::Empty);
        assert_eq!(read(&"1\n".repeat(DAYS_MAX * DAY + 1), 1).unwrap_err(), PlanetLabError::Long);
    }
}
