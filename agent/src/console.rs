//! Console output as a stream, read from the log: it works while the machine runs and after it has gone.

use crate::{directory::MachineDirectory, process::ControlClient};
use bytes::Bytes;
use futures::Stream;
use std::{io, time::Duration};
use tokio::{
    fs::File,
    io::{AsyncReadExt as _, AsyncSeekExt as _},
};
use vmotion_api::ConsoleQuery;
use vmotion_model::{ApiError, ErrorCode};

/// Bytes sent at a time.
const CHUNK: usize = 64 << 10;
/// How often a followed log is looked at. The process flushes it within a millisecond.
const POLL: Duration = Duration::from_millis(10);
/// How often a quiet machine is asked whether it still lives.
const ALIVE_EVERY: u32 = 50;

/// The log of a machine from the wanted offset on: the offset of the first byte, and the bytes. A followed stream ends
/// when the machine has ended or left and everything was read.
pub(crate) async fn stream(
    directory: MachineDirectory,
    query: ConsoleQuery,
) -> Result<(u64, impl Stream<Item = io::Result<Bytes>> + Send), ApiError> {
    let gone = |error: io::Error| ApiError::new(ErrorCode::NotFound, format!("There is no console log: {error}"));
    let client = ControlClient::new(&directory);
    let state = match client.status().await {
        Ok(state) => state,
        Err(_) => directory.read_state().map_err(gone)?,
    };
    let mut log = File::open(directory.console_log()).await.map_err(gone)?;
    let start = query.offset.unwrap_or(state.console_base).max(state.console_base);
    log.seek(io::SeekFrom::Start(start - state.console_base)).await.map_err(gone)?;
    let reader = Reader { log, client, follow: query.follow, quiet: 0, ending: false };
    let stream = futures::stream::try_unfold(reader, |mut reader| async move {
        let bytes = reader.next().await?;
        Ok(bytes.map(|bytes| (bytes, reader)))
    });
    Ok((start, stream))
}

struct Reader {
    log: File,
    client: ControlClient,
    follow: bool,
    quiet: u32,
    ending: bool,
}

impl Reader {
    async fn next(&mut self) -> io::Result<Option<Bytes>> {
        loop {
            let mut buffer = vec![0; CHUNK];
            let count = self.log.read(&mut buffer).await?;
            if count > 0 {
                buffer.truncate(count);
                self.quiet = 0;
                return Ok(Some(buffer.into()));
            }
            if !self.follow || self.ending {
                return Ok(None);
            }
            self.quiet += 1;
            if self.quiet.is_multiple_of(ALIVE_EVERY) {
                // Looked at once more after the end: its last words may have come in between.
                self.ending = self.client.status().await.map_or(true, |state| state.left);
            }
            tokio::time::sleep(POLL).await;
        }
    }
}
