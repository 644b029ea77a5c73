//! Points at which a test may do harm.
//!
//! With `VMOTION_CHECKPOINTS` naming a Unix socket, a machine process says there which state it has entered, and waits for
//! an answer before it goes on: a test kills or cuts something at exactly that moment. Only in builds with debug
//! assertions; an operator's release build has none of it.

/// Says `side state`, and waits to be let on.
#[cfg(debug_assertions)]
pub(super) fn checkpoint(side: &str, state: &str) {
    use std::{
        io::{Read as _, Write as _},
        os::unix::net::UnixStream,
    };
    let Some(path) = std::env::var_os("VMOTION_CHECKPOINTS") else { return };
    let told = tokio::task::block_in_place(|| -> std::io::Result<()> {
        let mut stream = UnixStream::connect(path)?;
        stream.write_all(format!("{side} {state}\n").as_bytes())?;
        stream.read_exact(&mut [0])
    });
    if let Err(error) = told {
        tracing::warn!(%error, side, state, "nobody listens at the checkpoint");
    }
}

#[cfg(not(debug_assertions))]
pub(super) const fn checkpoint(_side: &str, _state: &str) {}
