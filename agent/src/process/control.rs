//! The control socket: one JSON line a request, one a reply. Local, owner-only by the directory's mode.

use super::{ProcessState, life::Life};
use crate::directory::MachineDirectory;
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use std::{path::PathBuf, sync::Arc, time::Duration};
use tokio::{
    io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader},
    net::{UnixListener, UnixStream},
};
use vmotion_api::{MoveReport, OutgoingRequest, PartOrder};
use vmotion_model::{ApiError, ErrorCode, MemoryTelemetry, MoveId, MoveLimit};

/// Longest request or reply, in bytes.
const LINE_BYTES_MAX: u64 = 1 << 20;
/// A process that does not answer by then counts as gone.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(20);

/// What an agent asks of a machine process.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Command {
    /// How are you? Answered with [`ProcessState`].
    Status,
    /// End the machine, and the process.
    Stop,
    /// Move away.
    Outgoing(Box<OutgoingRequest>),
    /// How does or did the move go? Answered with [`MoveReport`].
    Report(MoveId),
    /// Call a move off.
    Cancel(MoveId),
    /// Change the limits of a move away.
    Limit(MoveId, MoveLimit),
    /// Save to a directory.
    Snapshot(PathBuf),
    /// Type into the console.
    Input(Vec<u8>),
    /// What does the guest do to its memory? Answered with an optional [`MemoryTelemetry`].
    MemoryUse,
    /// What did the part of a machine do lately? Answered with [`PartFigures`](vmotion_model::PartFigures).
    PartFigures,
    /// Have a part of a machine do something. Answered with [`PartAnswer`](vmotion_api::PartAnswer).
    Part(PartOrder),
}

type Reply = Result<serde_json::Value, ApiError>;

/// Serves the socket until the process ends.
pub(super) async fn serve(listener: UnixListener, life: Arc<Life>) {
    loop {
        match listener.accept().await {
            Ok((stream, _)) => {
                let life = Arc::clone(&life);
                tokio::spawn(async move {
                    if let Err(error) = converse(stream, &life).await {
                        tracing::debug!(%error, "control connection ended");
                    }
                });
            }
            Err(error) => {
                tracing::warn!(%error, "control socket");
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
    }
}

async fn converse(stream: UnixStream, life: &Arc<Life>) -> std::io::Result<()> {
    let (read, mut write) = stream.into_split();
    let mut read = BufReader::new(read);
    loop {
        let mut line = Vec::new();
        if (&mut read).take(LINE_BYTES_MAX).read_until(b'\n', &mut line).await? == 0 {
            return Ok(());
        }
        let reply = match serde_json::from_slice::<Command>(&line) {
            Ok(command) => answer(life, command).await,
            Err(error) => Err(ApiError::new(ErrorCode::Invalid, format!("Control request is not valid: {error}"))),
        };
        let mut text = serde_json::to_vec(&reply)?;
        text.push(b'\n');
        write.write_all(&text).await?;
    }
}

async fn answer(life: &Arc<Life>, command: Command) -> Reply {
    fn json(value: impl Serialize) -> Reply {
        serde_json::to_value(value).map_err(|error| ApiError::new(ErrorCode::Internal, error.to_string()))
    }
    match command {
        Command::Status => json(life.state()),
        Command::Stop => json(life.stop("stopped by request")),
        Command::Outgoing(request) => json(life.move_away(*request)?),
        Command::Report(id) => json(life.report(&id)?),
        Command::Cancel(id) => json(life.cancel(&id).await?),
        Command::Limit(id, limit) => json(life.limit(&id, limit)?),
        Command::Snapshot(directory) => json(life.snapshot(directory).await?),
        Command::Input(bytes) => json(life.input(&bytes)?),
        Command::MemoryUse => json(life.memory_use()),
        Command::PartFigures => json(life.part_figures().await?),
        Command::Part(order) => json(life.obey(order).await?),
    }
}

/// Asks a machine process.
#[derive(Debug, Clone)]
pub struct ControlClient {
    socket: PathBuf,
}

impl ControlClient {
    pub(crate) fn new(directory: &MachineDirectory) -> Self {
        Self { socket: directory.control_socket() }
    }

    /// Sends `command`.
    ///
    /// # Errors
    /// `Unavailable` when the process is gone; else what it answered.
    pub(crate) async fn ask<T: DeserializeOwned>(&self, command: &Command) -> Result<T, ApiError> {
        let gone = |error: &dyn std::fmt::Display| {
            ApiError::new(ErrorCode::Unavailable, format!("The machine process does not answer: {error}"))
        };
        let asking = async {
            let stream = UnixStream::connect(&self.socket).await?;
            let (read, mut write) = stream.into_split();
            let mut text = serde_json::to_vec(command)?;
            text.push(b'\n');
            write.write_all(&text).await?;
            let mut line = Vec::new();
            BufReader::new(read).take(LINE_BYTES_MAX).read_until(b'\n', &mut line).await?;
            if line.is_empty() {
                return Err(std::io::Error::from(std::io::ErrorKind::UnexpectedEof));
            }
            Ok(line)
        };
        let line = match tokio::time::timeout(ANSWER_TIMEOUT, asking).await {
            Ok(line) => line.map_err(|error| gone(&error))?,
            Err(_) => return Err(gone(&"it takes too long")),
        };
        let reply: Reply = serde_json::from_slice(&line).map_err(|error| gone(&error))?;
        serde_json::from_value(reply?).map_err(|error| gone(&error))
    }

    pub(crate) async fn status(&self) -> Result<ProcessState, ApiError> {
        self.ask(&Command::Status).await
    }

    pub(crate) async fn memory_use(&self) -> Result<Option<MemoryTelemetry>, ApiError> {
        self.ask(&Command::MemoryUse).await
    }

    pub(crate) async fn report(&self, id: &MoveId) -> Result<MoveReport, ApiError> {
        self.ask(&Command::Report(id.clone())).await
    }
}
