//! A WAN between two network namespaces, from the command line. See the package's README.

#![forbid(unsafe_code)]

mod arguments;
mod child;
mod impairment_flags;
mod output;
mod session;

use arguments::Arguments;
use clap::Parser as _;
use std::process::ExitCode;

/// Ended by an error of ours, as `env` and `timeout` have it; lower codes may be the command's.
const FAILED: u8 = 125;

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    match runtime.map_err(anyhow::Error::from).and_then(|runtime| runtime.block_on(session::run(&arguments))) {
        Ok(code) => ExitCode::from(code),
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::from(FAILED)
        }
    }
}
