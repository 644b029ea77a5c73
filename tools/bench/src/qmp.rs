//! QEMU's monitor: one JSON object a line, answers and events mixed.

use crate::process::check_interrupted;
use anyhow::{Context as _, Result, bail};
use serde_json::{Value, json};
use std::{
    collections::VecDeque,
    io::{BufRead as _, BufReader, ErrorKind, Write as _},
    os::unix::net::UnixStream,
    time::{Duration, Instant},
};

const READ_PATIENCE: Duration = Duration::from_millis(100);
const ANSWER_PATIENCE: Duration = Duration::from_secs(20);

/// A monitor after its greeting.
#[derive(Debug)]
pub(crate) struct Monitor {
    stream: UnixStream,
    reader: BufReader<UnixStream>,
    line: String,
    /// Events that came while an answer was awaited, in order.
    events: VecDeque<Value>,
}

impl Monitor {
    pub(crate) fn open(stream: UnixStream) -> Result<Self> {
        stream.set_read_timeout(Some(READ_PATIENCE))?;
        let reader = BufReader::new(stream.try_clone()?);
        let mut monitor = Self { stream, reader, line: String::new(), events: VecDeque::new() };
        monitor.read(Instant::now() + ANSWER_PATIENCE)?.context("QEMU's monitor does not greet")?;
        monitor.ask("qmp_capabilities", json!({}))?;
        Ok(monitor)
    }

    /// Runs a command; its `return`.
    pub(crate) fn ask(&mut self, command: &str, arguments: Value) -> Result<Value> {
        let request = json!({ "execute": command, "arguments": arguments });
        writeln!(self.stream, "{request}").with_context(|| format!("Cannot ask QEMU for {command}"))?;
        let deadline = Instant::now() + ANSWER_PATIENCE;
        loop {
            let message = self.read(deadline)?;
            let mut message = message.with_context(|| format!("QEMU does not answer {command}"))?;
            if let Some(error) = message.get("error") {
                bail!("QEMU refuses {command}: {error}");
            }
            match message.get_mut("return") {
                Some(answer) => return Ok(answer.take()),
                None => self.events.push_back(message),
            }
        }
    }

    /// The next event; those that came before a question was answered first. Nothing when none comes in time.
    pub(crate) fn next_event(&mut self, deadline: Instant) -> Result<Option<Value>> {
        match self.events.pop_front() {
            Some(event) => Ok(Some(event)),
            None => self.read(deadline),
        }
    }

    fn read(&mut self, deadline: Instant) -> Result<Option<Value>> {
        loop {
            check_interrupted()?;
            match self.reader.read_line(&mut self.line) {
                Ok(0) => bail!("QEMU ended"),
                Ok(_) if self.line.ends_with('\n') => {
                    let message = serde_json::from_str(&self.line).context("QEMU sent what is not JSON");
                    self.line.clear();
                    return message.map(Some);
                }
                Ok(_) => {}
                // What was read before the time-out stays in the line.
                Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {}
                Err(error) => return Err(error.into()),
            }
            if Instant::now() > deadline {
                return Ok(None);
            }
        }
    }
}
