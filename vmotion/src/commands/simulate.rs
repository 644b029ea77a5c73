//! What would have come of it? Days that were recorded or generated, under several policies; no controller is asked.

use crate::{
    arguments::{Global, SimulateArguments},
    output, plot,
};
use anyhow::{Context as _, Result};
use std::{
    fs::{self, File, OpenOptions},
    io::{BufReader, IsTerminal as _},
    path::Path,
    sync::atomic::{AtomicUsize, Ordering},
};
use vmotion_model::{ApiError, ByteSize, ErrorCode, PolicySpec, SiteSpec};
use vmotion_policy::simulator::{
    DAY, FIGURES_MAX, Fleet, HostsWanted, MACHINES_MAX, Outcome, Policy, Recording, Replay, Simulation, generate,
    planetlab, read_table, replay_watched, settle,
};

/// Hosts, machines and days that are generated when nobody says.
const HOSTS: u32 = 40;
const MACHINES: u32 = 1000;
const DAYS: u32 = 3;
/// Machines of a PlanetLab trace, of which only the load was recorded.
const VCPUS: u32 = 1;
const MEMORY: ByteSize = ByteSize::gib(2);

pub(super) async fn run(arguments: SimulateArguments, global: &Global) -> Result<()> {
    let json = global.json;
    // It takes a processor for seconds to minutes.
    tokio::task::spawn_blocking(move || simulate(&arguments, json)).await.context("The simulation broke off")?
}

fn simulate(arguments: &SimulateArguments, json: bool) -> Result<()> {
    // Whatever can be refused is refused before the long part.
    let spec = arguments.policy.as_deref().map_or_else(|| Ok(PolicySpec::default()), policy)?;
    if let Some(file) = &arguments.plot {
        let opened = OpenOptions::new().create(true).truncate(false).write(true).open(file);
        opened.map_err(|error| invalid(format!("Cannot write the drawing {}: {error}", file.display())))?;
    }
    let fleet = fleet(arguments)?;
    let mut policies: Vec<Policy> = arguments.compare.iter().map(|compare| Policy::from(*compare)).collect();
    policies.sort_unstable();
    policies.dedup();
    let outcomes = replay_all(&fleet, &policies, &spec)?;
    let trace = arguments.trace.as_ref().map(|trace| trace.display().to_string());
    let simulation = Simulation::new(&fleet, trace, arguments.seed, spec, outcomes);
    if let Some(file) = &arguments.plot {
        plot::simulation::draw(&simulation, file)?;
    }
    if json {
        return output::json(&simulation);
    }
    output::simulation(&simulation);
    Ok(())
}

fn invalid(message: String) -> ApiError {
    ApiError::new(ErrorCode::Invalid, message)
}

/// The policies side by side, each in a thread of its own: none waits for another.
fn replay_all(fleet: &Fleet, policies: &[Policy], spec: &PolicySpec) -> Result<Vec<Outcome>> {
    let replayed = fleet.last_day();
    let (done, all) = (AtomicUsize::new(0), policies.len() * replayed.len());
    let shows = std::io::stderr().is_terminal();
    let watch = |_| {
        let done = done.fetch_add(1, Ordering::Relaxed) + 1;
        if shows {
            eprint!("\rreplayed {} %", done * 100 / all.max(1));
        }
    };
    let outcomes = std::thread::scope(|scope| {
        let threads = policies.iter().map(|policy| {
            let replay = Replay { policy: *policy, replayed: replayed.clone(), spec: spec.clone() };
            scope.spawn(move || replay_watched(fleet, &replay, watch))
        });
        // All are begun before one is waited for.
        let threads: Vec<_> = threads.collect();
        threads.into_iter().map(std::thread::ScopedJoinHandle::join).collect::<Vec<_>>()
    });
    if shows {
        eprint!("\r\x1b[K");
    }
    outcomes.into_iter().map(|outcome| outcome.map_err(|_| anyhow::anyhow!("The simulation broke off"))).collect()
}

/// The machines and hosts that are meant.
fn fleet(arguments: &SimulateArguments) -> Result<Fleet> {
    let SimulateArguments { trace, hosts, machines, days, seed, host_cpus, host_memory, vcpus, memory, .. } = arguments;
    let Some(trace) = trace else {
        let [hosts, machines, days] = [(hosts, HOSTS), (machines, MACHINES), (days, DAYS)]
            .map(|(said, default)| said.unwrap_or(default) as usize);
        if machines * days * DAY > FIGURES_MAX {
            return Err(invalid(format!(
                "--machines {machines} and --days {days} are too much together: more than {} million figures; use fewer of either",
                FIGURES_MAX / 1_000_000
            ))
            .into());
        }
        return Ok(generate(hosts, machines, days * DAY, *seed));
    };
    let recording = if trace.is_dir() {
        directory(trace, vcpus.unwrap_or(VCPUS), memory.unwrap_or(MEMORY))?
    } else if vcpus.is_some() || memory.is_some() {
        let why = "--vcpus and --memory are for a directory in PlanetLab's format: a table says both of each machine; leave them out";
        return Err(invalid(format!("{}: {why}", trace.display())).into());
    } else {
        let file = File::open(trace).map_err(|error| unreadable(trace, &error))?;
        read_table(BufReader::new(file)).map_err(|error| invalid(format!("{}: {error}", trace.display())))?
    };
    let wanted = HostsWanted { hosts: hosts.map(|hosts| hosts as usize), cpus: *host_cpus, memory: *host_memory };
    Ok(settle(recording, wanted, *seed).map_err(|error| invalid(format!("{}: {error}", trace.display())))?)
}

fn unreadable(path: &Path, error: &std::io::Error) -> ApiError {
    invalid(format!("Cannot read {}: {error}", path.display()))
}

/// Files in the order of their names; hidden ones are none.
fn directory(directory: &Path, vcpus: u32, memory: ByteSize) -> Result<Recording, ApiError> {
    let mut files = Vec::new();
    for entry in fs::read_dir(directory).map_err(|error| unreadable(directory, &error))? {
        let entry = entry.map_err(|error| unreadable(directory, &error))?;
        if !entry.file_name().as_encoded_bytes().starts_with(b".") && entry.path().is_file() {
            files.push(entry.path());
        }
        if files.len() > MACHINES_MAX {
            return Err(invalid(format!("{} has more than {MACHINES_MAX} files: leave some out", directory.display())));
        }
    }
    files.sort_unstable();
    if files.is_empty() {
        return Err(invalid(format!(
            "{} has no files: name a directory with one for each machine",
            directory.display()
        )));
    }
    let (mut traces, mut figures) = (Vec::with_capacity(files.len()), 0);
    for file in files {
        let text = fs::read_to_string(&file).map_err(|error| unreadable(&file, &error))?;
        let refused = |why: String| invalid(format!("{}: {why}", file.display()));
        let trace = planetlab(&text, vcpus, memory).map_err(|error| refused(error.to_string()))?;
        figures += trace.cpus.len();
        if figures > FIGURES_MAX {
            return Err(refused(format!("there are more than {FIGURES_MAX} lines in all: leave files out")));
        }
        traces.push(trace);
    }
    Ok(Recording { traces, begins_on: None })
}

/// The fields of `[policy]`, or a site file that has it.
fn policy(file: &Path) -> Result<PolicySpec> {
    let text = fs::read_to_string(file).map_err(|error| unreadable(file, &error))?;
    let refused = |why: &str| invalid(format!("{} is no policy: {}", file.display(), why.trim_end()));
    let table: toml::Table = toml::from_str(&text).map_err(|error| refused(&error.to_string()))?;
    let spec = if table.contains_key("policy") {
        toml::from_str::<SiteSpec>(&text).map(|site| site.policy.unwrap_or_default())
    } else {
        toml::from_str(&text)
    };
    let spec: PolicySpec = spec.map_err(|error| refused(&error.to_string()))?;
    spec.validate().map_err(|error| refused(&error))?;
    Ok(spec)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a panic in a test is its report")]

    use super::*;

    #[test]
    fn a_policy_is_its_fields_or_a_site_and_nothing_else() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("p.toml");
        let read = |text: &str| {
            fs::write(&file, text).unwrap();
            policy(&file).map_err(|error| error.to_string())
        };
        assert_eq!(read("moves_per_hour_max = 4\n").unwrap().moves_per_hour_max, 4);
        assert_eq!(read("[policy]\nhold_s = 60\n").unwrap().hold_s, 60);
        assert_eq!(read("").unwrap(), PolicySpec::default());
        for (bad, words) in [
            ("moves = 4\n", "moves"),
            ("cpu_percent_content = 0\n", "cpu_percent_content 0 is not valid"),
            ("hold_s = -1\n", "hold_s"),
            ("[policy]\nholds = 1\n", "holds"),
        ] {
            let error = read(bad).unwrap_err();
            assert!(error.contains("p.toml is no policy") && error.contains(words), "{error}");
        }
    }

    #[test]
    fn a_directory_is_read_in_the_order_of_names_and_faults_name_the_file() {
        let place = tempfile::tempdir().unwrap();
        let read = || directory(place.path(), 2, MEMORY);
        assert!(read().unwrap_err().message.contains("has no files"));
        fs::write(place.path().join("b"), "50\n100\n").unwrap();
        fs::write(place.path().join("a"), "10\n").unwrap();
        fs::write(place.path().join(".hidden"), "x").unwrap();
        let lengths: Vec<usize> = read().unwrap().traces.iter().map(|trace| trace.cpus.len()).collect();
        assert_eq!(lengths, [1, 2]);
        fs::write(place.path().join("c"), "1\nmuch\n").unwrap();
        let error = read().unwrap_err().message;
        assert!(error.contains("/c: line 2: \"much\" is not valid"), "{error}");
    }
}
