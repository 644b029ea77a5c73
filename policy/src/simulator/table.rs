//! Days that were recorded as a table (CSV): a row for each machine and sample.
//!
//! The one invariant: what is kept of a table is bounded by what a simulation may have, whatever is in it.

use super::{
    DAY, DAYS_MAX, FIGURES_MAX, HOSTS_MAX, INTERVAL_S, MACHINES_MAX,
    fleet::Trace,
    recorded::{Recording, usual_memory_use},
};
use csv::{ErrorKind, ReaderBuilder, StringRecord, Trim};
use std::{collections::HashMap, io::Read};
use thiserror::Error;
use vmotion_model::ByteSize;

/// Columns that a table has, and the one that it may have.
const COLUMNS: [&str; 6] = ["time_s", "machine", "cpus", "vcpus", "memory_mib", "host"];
/// The last of them may be left out.
const NEEDED: usize = 5;
/// Later times, in s, are none: they are likely ms.
const TIME_MAX_S: f64 = 1e11;
/// vCPUs of a machine at most.
const VCPUS_MAX: u32 = 1024;
/// MiB of a machine's memory at most: 16 TiB.
const MEMORY_MIB_MAX: u64 = 16 << 20;
/// Of a value that is refused so many characters are shown.
const SHOWN: usize = 40;

/// Why a table is no recording.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum TableError {
    /// There is no row.
    #[error("it is empty: write a line of columns ({}) and a row for each machine and sample", columns())]
    Empty,
    /// The first line is not what is expected.
    #[error("line 1: {0}; columns are {columns}", columns = columns())]
    Columns(String),
    /// A row is not as long as the first line, or no text, or cannot be read.
    #[error("line {line}: {why}")]
    Row {
        /// From 1.
        line: u64,
        /// What is the matter, and what to do.
        why: String,
    },
    /// A value is not possible.
    #[error("line {line}: {field} {value:?} is not valid: {expected}")]
    Field {
        /// From 1.
        line: u64,
        /// Name of the column.
        field: &'static str,
        /// As it is, its beginning where it is long.
        value: String,
        /// What is possible.
        expected: String,
    },
    /// More is recorded than a simulation may have.
    #[error("line {line}: {0}", line = .1)]
    TooMuch(String, u64),
}

fn columns() -> String {
    format!("{}, and {} where that is known", COLUMNS[..NEEDED].join(", "), COLUMNS[NEEDED])
}

/// Reads a table with a first line that names its columns: `time_s` (s, of any clock), `machine` (a name), `cpus` (processors that it asked
/// for, not percent), `vcpus`, `memory_mib`, and, if known, `host`, of which a machine's first row says where it begins. Rows of one machine
/// are in order of time; each is alive from its first to its last. Samples within five minutes are averaged, and what is between two of them
/// is as the one before.
///
/// # Errors
/// [`TableError`], with the line, for the first thing that is not as it has to be.
pub fn read_table(input: impl Read) -> Result<Recording, TableError> {
    let mut reader = ReaderBuilder::new().trim(Trim::All).from_reader(input);
    let header = reader.headers().map_err(|error| unreadable(&error))?.clone();
    if header.iter().all(str::is_empty) {
        return Err(TableError::Empty);
    }
    let places = places(&header)?;
    let mut table = Table::default();
    let mut record = StringRecord::new();
    while reader.read_record(&mut record).map_err(|error| unreadable(&error))? {
        let line = record.position().map_or(0, csv::Position::line);
        table.take(&Row { record: &record, places: &places, line })?;
    }
    table.recording()
}

fn unreadable(error: &csv::Error) -> TableError {
    let line = error.position().map_or(1, csv::Position::line);
    let why = match error.kind() {
        ErrorKind::UnequalLengths { expected_len, len, .. } => {
            format!("it has {len} values, and there are {expected_len} columns: write one value for each")
        }
        ErrorKind::Utf8 { .. } => "it is not text in UTF-8: write the file as such".to_owned(),
        _ => format!("it cannot be read: {error}"),
    };
    TableError::Row { line, why }
}

/// Of each of [`COLUMNS`], where it is.
fn places(header: &StringRecord) -> Result<[Option<usize>; COLUMNS.len()], TableError> {
    let mut places = [None; COLUMNS.len()];
    for (at, name) in header.iter().enumerate() {
        let Some(column) = COLUMNS.iter().position(|column| *column == name) else {
            return Err(TableError::Columns(format!(
                "there is no column {:?}: leave it out, or rename it",
                shown(name)
            )));
        };
        if places[column].replace(at).is_some() {
            return Err(TableError::Columns(format!("column {name} is there twice: leave one out")));
        }
    }
    match (0..NEEDED).find(|column| places[*column].is_none()) {
        Some(missing) => Err(TableError::Columns(format!("column {} is missing: add it", COLUMNS[missing]))),
        None => Ok(places),
    }
}

fn shown(text: &str) -> String {
    text.chars().take(SHOWN).collect()
}

struct Row<'a> {
    record: &'a StringRecord,
    places: &'a [Option<usize>; COLUMNS.len()],
    line: u64,
}

impl Row<'_> {
    fn text(&self, column: usize) -> Option<&str> {
        self.places[column].and_then(|at| self.record.get(at))
    }

    fn refused(&self, column: usize, expected: impl Into<String>) -> TableError {
        let value = shown(self.text(column).unwrap_or_default());
        TableError::Field { line: self.line, field: COLUMNS[column], value, expected: expected.into() }
    }

    fn value<T: std::str::FromStr>(
        &self,
        column: usize,
        possible: impl Fn(&T) -> bool,
        expected: &str,
    ) -> Result<T, TableError> {
        let value = self.text(column).and_then(|text| text.parse().ok()).filter(possible);
        value.ok_or_else(|| self.refused(column, expected))
    }

    fn name(&self, column: usize) -> Result<&str, TableError> {
        let name = self.text(column).filter(|name| !name.is_empty());
        name.ok_or_else(|| self.refused(column, "use a name"))
    }
}

/// A machine, as far as it was read.
struct Machine {
    vcpus: u32,
    memory_mib: u64,
    host: Option<usize>,
    /// Its first interval, since the clock's beginning.
    begins: u64,
    last_s: f64,
    /// Of its last interval: the sum of its samples, and their number.
    sum: f64,
    samples: u32,
    /// Of the intervals before.
    cpus: Vec<f32>,
}

impl Machine {
    /// Closes the last interval, and all after it before `interval`, which are as that one.
    fn close_until(&mut self, interval: u64) {
        let mean = self.sum / f64::from(self.samples.max(1));
        #[expect(clippy::cast_possible_truncation, reason = "processors")]
        let mean = mean as f32;
        let until = usize::try_from(interval - self.begins).unwrap_or(usize::MAX);
        self.cpus.resize(until, mean);
        (self.sum, self.samples) = (0.0, 0);
    }

    const fn interval(&self) -> u64 {
        self.begins + self.cpus.len() as u64
    }
}

#[derive(Default)]
struct Table {
    machines: Vec<Machine>,
    names: HashMap<String, usize>,
    hosts: HashMap<String, usize>,
    /// First interval, and last.
    spans: Option<(u64, u64)>,
    figures: u64,
    /// Of the last row.
    line: u64,
}

impl Table {
    fn take(&mut self, row: &Row<'_>) -> Result<(), TableError> {
        self.line = row.line;
        let time_s: f64 =
            row.value(0, |time| (0.0..TIME_MAX_S).contains(time), "use seconds, 0 or more, such as 1700000000")?;
        let name = row.name(1)?;
        let vcpus: u32 = row.value(
            3,
            |vcpus| (1..=VCPUS_MAX).contains(vcpus),
            &format!("use a whole number from 1 to {VCPUS_MAX}"),
        )?;
        let memory_mib: u64 = row.value(
            4,
            |mib| (1..=MEMORY_MIB_MAX).contains(mib),
            &format!("use whole MiB from 1 to {MEMORY_MIB_MAX}"),
        )?;
        let cpus: f64 = row.value(
            2,
            |cpus| (0.0..=f64::from(vcpus)).contains(cpus),
            &format!("use processors (not percent) from 0 to the machine's {vcpus} vcpus"),
        )?;
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "range checked above")]
        let interval = (time_s / INTERVAL_S as f64) as u64;
        self.span(interval, row)?;
        let Some(at) = self.names.get(name).copied() else {
            return self.begin(
                row,
                Machine {
                    vcpus,
                    memory_mib,
                    host: None,
                    begins: interval,
                    last_s: time_s,
                    sum: cpus,
                    samples: 1,
                    cpus: Vec::new(),
                },
            );
        };
        let machine = &mut self.machines[at];
        let as_before = |what: &str| format!("it was {what} in the machine's first row, and cannot change");
        if vcpus != machine.vcpus {
            return Err(row.refused(3, as_before(&machine.vcpus.to_string())));
        }
        if memory_mib != machine.memory_mib {
            return Err(row.refused(4, as_before(&machine.memory_mib.to_string())));
        }
        if time_s <= machine.last_s {
            let before = machine.last_s;
            let why = if time_s < before { "sort its rows by time" } else { "leave out one of the two rows" };
            return Err(row.refused(0, format!("the row of {} before is of {before}: {why}", shown(name))));
        }
        let more = interval - machine.interval();
        self.figures += more;
        if self.figures > FIGURES_MAX as u64 {
            return Err(too_much_of_it(row.line));
        }
        if more > 0 {
            machine.close_until(interval);
        }
        machine.last_s = time_s;
        machine.sum += cpus;
        machine.samples = machine.samples.saturating_add(1);
        Ok(())
    }

    fn span(&mut self, interval: u64, row: &Row<'_>) -> Result<(), TableError> {
        let (first, last) = self.spans.unwrap_or((interval, interval));
        let (first, last) = (first.min(interval), last.max(interval));
        if last - first >= (DAYS_MAX * DAY) as u64 {
            let why =
                format!("more than {DAYS_MAX} days lie between this row and another: cut the table, or mend the time");
            return Err(row.refused(0, why));
        }
        self.spans = Some((first, last));
        Ok(())
    }

    fn begin(&mut self, row: &Row<'_>, mut machine: Machine) -> Result<(), TableError> {
        if self.machines.len() == MACHINES_MAX {
            return Err(TableError::TooMuch(
                format!("there are more than {MACHINES_MAX} machines: leave some out"),
                row.line,
            ));
        }
        if row.places[NEEDED].is_some() {
            let host = row.name(NEEDED)?;
            let next = self.hosts.len();
            machine.host = Some(*self.hosts.entry(host.to_owned()).or_insert(next));
            if self.hosts.len() > HOSTS_MAX {
                return Err(row.refused(NEEDED, format!("there are more than {HOSTS_MAX} hosts: leave some out")));
            }
        }
        self.names.insert(row.name(1)?.to_owned(), self.machines.len());
        self.figures += 1;
        self.machines.push(machine);
        Ok(())
    }

    fn recording(self) -> Result<Recording, TableError> {
        let Some((first, _)) = self.spans else { return Err(TableError::Empty) };
        // A trace is as long as the time from the beginning of all to its machine's end.
        let all: u64 = self.machines.iter().map(|machine| machine.interval() + 1 - first).sum();
        if all > FIGURES_MAX as u64 {
            return Err(too_much_of_it(self.line));
        }
        let begins_on: Option<Vec<usize>> = self.machines.iter().map(|machine| machine.host).collect();
        let trace = |mut machine: Machine| {
            machine.close_until(machine.interval() + 1);
            let begins = usize::try_from(machine.begins - first).unwrap_or(usize::MAX);
            let mut cpus = vec![0.0; begins];
            cpus.append(&mut machine.cpus);
            let memory = ByteSize::mib(machine.memory_mib);
            let memory_use = usual_memory_use(machine.vcpus, memory);
            Trace { vcpus: machine.vcpus, memory, memory_use, lives: begins..cpus.len(), cpus }
        };
        Ok(Recording { traces: self.machines.into_iter().map(trace).collect(), begins_on })
    }
}

fn too_much_of_it(line: u64) -> TableError {
    let most = FIGURES_MAX / 1_000_000;
    TableError::TooMuch(
        format!("there are more than {most} million machines times intervals: leave out machines, or days"),
        line,
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::simulator::{HostsWanted, settle};
    use proptest::prelude::*;

    const HEADER: &str = "time_s,machine,cpus,vcpus,memory_mib\n";

    fn read(rows: &str) -> Result<Recording, TableError> {
        read_table(format!("{HEADER}{rows}").as_bytes())
    }

    #[test]
    fn samples_become_intervals_and_what_is_between_is_as_before() {
        let rows = "1000000200,a,1,2,1024\n1000000300,a,2,2,1024\n1000000500,a,1,2,1024\n1000001200,a,0.5,2,1024\n\
                    1000000800,b,3,4,512\n";
        let recording = read(rows).unwrap();
        let [a, b] = &recording.traces[..] else { panic!("{recording:?}") };
        // 1,000,000,200 is a multiple of 300.
        assert_eq!((&a.cpus[..], a.lives.clone(), a.vcpus), (&[1.5, 1.0, 1.0, 0.5][..], 0..4, 2), "{a:?}");
        assert_eq!((&b.cpus[..], b.lives.clone(), b.memory), (&[0.0, 0.0, 3.0][..], 2..3, ByteSize::mib(512)));
        assert_eq!(recording.begins_on, None);
    }

    #[test]
    fn columns_may_be_in_any_order_and_a_host_is_where_a_machine_begins() {
        let text = "host,machine,memory_mib,vcpus,cpus,time_s\nh1,a,64,1,0,0\nh7,b,64,1,1,0\nh7,a,64,1,1,300\n";
        let recording = read_table(text.as_bytes()).unwrap();
        assert_eq!((recording.begins_on, recording.traces.len()), (Some(vec![0, 1]), 2));
    }

    #[test]
    fn whatever_is_wrong_is_named_by_line_field_and_value() {
        let refused = |rows: &str| read(rows).unwrap_err().to_string();
        for (row, words) in [
            ("x,a,1,2,64", "line 2: time_s \"x\" is not valid: use seconds"),
            ("-1,a,1,2,64", "time_s \"-1\""),
            ("1e300,a,1,2,64", "time_s \"1e300\""),
            (
                "0,a,NaN,2,64",
                "line 2: cpus \"NaN\" is not valid: use processors (not percent) from 0 to the machine's 2",
            ),
            ("0,a,-0.1,2,64", "cpus \"-0.1\""),
            ("0,a,2.5,2,64", "cpus \"2.5\""),
            ("0,a,1,0,64", "vcpus \"0\""),
            ("0,a,1,2,0", "memory_mib \"0\""),
            ("0,,1,2,64", "machine \"\" is not valid: use a name"),
            ("0,a,1,2", "line 2: it has 4 values, and there are 5 columns"),
            ("0,a,1,2,64\n0,a,1,2,64", "line 3: time_s \"0\" is not valid: the row of a before is of 0: leave out"),
            ("300,a,1,2,64\n0,a,1,2,64", "line 3: time_s \"0\" is not valid: the row of a before is of 300: sort"),
            ("0,a,1,2,64\n300,a,1,4,64", "line 3: vcpus \"4\" is not valid: it was 2"),
            ("0,a,1,2,64\n300,a,1,2,65", "line 3: memory_mib \"65\" is not valid: it was 64"),
            ("0,a,1,2,64\n40000000,b,1,2,64", "line 3: time_s \"40000000\" is not valid: more than 400 days"),
        ] {
            assert!(refused(row).contains(words), "{row}: {}", refused(row));
        }
        let header = |text: &str| read_table(text.as_bytes()).unwrap_err().to_string();
        assert!(header("").contains("it is empty") && refused("").contains("it is empty"));
        assert!(header("time,machine\n").contains("there is no column \"time\""));
        assert!(header("time_s,time_s\n").contains("column time_s is there twice"));
        assert!(header("time_s,machine,cpus,vcpus\n").contains("column memory_mib is missing"));
        let no_host = format!("{},host\n0,a,1,2,64,\n", HEADER.trim());
        assert!(header(&no_host).contains("host \"\" is not valid"));
        assert!(read_table(&b"time_s,\xff\n"[..]).unwrap_err().to_string().contains("UTF-8"));
    }

    /// A row whose values are often, but not always, possible.
    fn row() -> impl Strategy<Value = String> {
        let time = prop_oneof![3 => (0u32..5000).prop_map(|time| time.to_string()), 1 => "\\PC{0,8}"];
        let cpus = prop_oneof![3 => (0.0..2.0f64).prop_map(|cpus| cpus.to_string()), 1 => "[0-9eE.+-]{0,6}"];
        let name = prop_oneof![3 => "[a-c]", 1 => "\\PC{0,3}"];
        (time, name, cpus).prop_map(|(time, name, cpus)| format!("{time},{name},{cpus},2,64\n"))
    }

    proptest! {
        #[test]
        fn no_text_makes_it_panic(text in any::<String>(), bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            let _ = read_table(text.as_bytes());
            let _ = read(&text);
            let _ = read_table(&bytes[..]);
        }

        #[test]
        fn what_is_read_has_a_figure_for_every_interval_of_a_life(rows in proptest::collection::vec(row(), 0..12)) {
            if let Ok(recording) = read(&rows.concat()) {
                for trace in &recording.traces {
                    prop_assert!(!trace.lives.is_empty() && trace.lives.end == trace.cpus.len());
                    prop_assert!(trace.cpus.iter().all(|cpus| (0.0..=2.0).contains(cpus)));
                }
                let fleet = settle(recording, HostsWanted::default(), 1).unwrap();
                prop_assert!(fleet.placed.iter().all(|host| *host < fleet.hosts));
            }
        }
    }
}
