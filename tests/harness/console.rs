//! A machine's console over all its stays: every byte once, in order.

use std::{fs, path::PathBuf};
use vmotion_probe_guest::{ConsoleEvent, ConsoleLine, ConsoleReader};

pub struct ConsoleLog {
    bytes: Vec<u8>,
    /// Gaps and overlaps between stays, in words; empty when every byte is there once.
    pub seams: Vec<String>,
}

impl ConsoleLog {
    /// Puts the logs of `directories` together by their offsets.
    pub fn collect(directories: &[PathBuf]) -> Self {
        let mut stays: Vec<(u64, String, Vec<u8>)> = Vec::new();
        for directory in directories {
            let Ok(files) = fs::read_dir(directory) else { continue };
            for file in files.flatten() {
                let name = file.file_name().into_string().unwrap_or_default();
                let Some(middle) = name.strip_prefix("console.").and_then(|name| name.strip_suffix("log")) else {
                    continue;
                };
                let base = match middle.trim_end_matches('.') {
                    "" => base_of(directory),
                    number => number.parse().ok(),
                };
                let bytes = fs::read(file.path()).unwrap_or_default();
                if let (Some(base), false) = (base, bytes.is_empty()) {
                    stays.push((base, file.path().display().to_string(), bytes));
                }
            }
        }
        stays.sort();
        let mut log = Self { bytes: Vec::new(), seams: Vec::new() };
        for (base, path, bytes) in stays {
            let end = log.bytes.len() as u64;
            if base != end {
                let what = if base > end { "are missing" } else { "exist twice: two copies ran" };
                log.seams.push(format!("bytes {}..{} before {path} {what}", base.min(end), base.max(end)));
            }
            log.bytes.extend(bytes);
        }
        log
    }

    pub fn text(&self) -> String {
        self.bytes.iter().filter(|byte| byte.is_ascii()).map(|byte| char::from(*byte)).collect()
    }

    pub fn len(&self) -> usize {
        self.bytes.len()
    }

    /// Everything the guest complained of, and every gap in its numbered lines.
    pub fn complaints(&self) -> Vec<String> {
        let mut complaints = self.seams.clone();
        let mut sequence: Option<u64> = None;
        for event in ConsoleReader::new().push(&self.bytes) {
            let ConsoleEvent::Line(line) = event else { continue };
            if line.is_failure() {
                complaints.push(format!("{line:?}"));
            }
            if let ConsoleLine::Heartbeat { sequence: now, .. } = line {
                if let Some(before) = sequence
                    && now <= before
                {
                    complaints.push(format!("heartbeat {now} came after {before}"));
                }
                sequence = Some(now);
            }
        }
        complaints
    }
}

fn base_of(directory: &std::path::Path) -> Option<u64> {
    let state: serde_json::Value = serde_json::from_slice(&fs::read(directory.join("state.json")).ok()?).ok()?;
    state.get("console_base")?.as_u64()
}
