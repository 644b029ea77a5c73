//! `console.sock`: whoever connects sees live output and types input.

use std::{sync::Arc, time::Duration};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::UnixListener,
    sync::{Notify, watch},
};
use vmotion_machine::ConsoleHandle;

/// Bytes copied at a time.
const CHUNK: usize = 16 << 10;

/// Serves the socket until the process ends. `begins` is where this host's output begins, once that is known: a machine
/// that is still arriving brings its last output with it, and that is not shown twice.
pub(super) async fn serve(listener: UnixListener, console: ConsoleHandle, begins: watch::Receiver<Option<u64>>) {
    let output = Arc::new(Notify::new());
    let notify = Arc::clone(&output);
    console.on_output(Box::new(move |_| notify.notify_waiters()));
    loop {
        let Ok((stream, _)) = listener.accept().await else {
            tokio::time::sleep(Duration::from_millis(100)).await;
            continue;
        };
        let (console, output, mut begins) = (console.clone(), Arc::clone(&output), begins.clone());
        tokio::spawn(async move {
            let (read, write) = stream.into_split();
            let typing = tokio::spawn(type_in(read, console.clone()));
            let now = console.offset();
            let begins = begins.wait_for(Option::is_some).await.map_or(now, |begins| begins.unwrap_or(now));
            if let Err(error) = show(write, &console, &output, now.max(begins)).await {
                tracing::debug!(%error, "console connection ended");
            }
            typing.abort();
        });
    }
}

async fn show(
    mut stream: tokio::net::unix::OwnedWriteHalf,
    console: &ConsoleHandle,
    output: &Notify,
    mut offset: u64,
) -> std::io::Result<()> {
    loop {
        // Registered before reading, so that output between the two is not missed.
        let more = output.notified();
        let (start, bytes) = console.read(offset, CHUNK);
        if bytes.is_empty() {
            // A notification can still be lost to a flusher that runs right now; look again soon.
            let _ = tokio::time::timeout(Duration::from_millis(20), more).await;
            continue;
        }
        offset = start + bytes.len() as u64;
        stream.write_all(&bytes).await?;
    }
}

async fn type_in(mut stream: tokio::net::unix::OwnedReadHalf, console: ConsoleHandle) {
    let mut buffer = [0; 256];
    while let Ok(count) = stream.read(&mut buffer).await {
        if count == 0 {
            return;
        }
        feed(&console, &buffer[..count]).await;
    }
}

/// Types `bytes` as fast as the guest takes them, for a while.
pub(super) async fn feed(console: &ConsoleHandle, mut bytes: &[u8]) -> usize {
    let mut taken = 0;
    for _ in 0..200 {
        let now = console.input(bytes);
        taken += now;
        bytes = &bytes[now..];
        if bytes.is_empty() {
            break;
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    taken
}
