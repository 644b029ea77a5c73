//! What does the operator type?
//!
//! One binary: the client commands, the two services, the demo, and (hidden) the machine process that agents start. Data
//! goes to standard output, everything else to standard error; the exit code says what kind of error it was.

#![forbid(unsafe_code)]
#![expect(clippy::print_stdout, reason = "this is the program that prints")]

mod arguments;
mod commands;
mod context;
mod demo;
mod failure;
mod output;
mod plot;
mod progress;
mod top;

use arguments::{Arguments, Command};
use clap::Parser as _;
use std::{io::IsTerminal as _, process::ExitCode};
use tracing_subscriber::EnvFilter;
use vmotion_api::{TraceId, within};

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let services = matches!(arguments.command, Command::Controller(_) | Command::Agent(_) | Command::Machine { .. });
    let default = if services { "info" } else { "error" };
    let filter = EnvFilter::try_from_env("VMOTION_LOG").unwrap_or_else(|_| EnvFilter::new(default));
    let colour = std::io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none();
    let log = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).with_target(false);
    if std::env::var_os("VMOTION_LOG_FORMAT").is_some_and(|format| format == "json") {
        log.json().flatten_event(true).with_current_span(false).init();
    } else {
        log.with_ansi(colour).init();
    }

    if !services && !matches!(arguments.command, Command::Demo(_)) {
        end_without_a_reader();
    }
    // All that one command asks for is one trace; services have one for each request.
    let trace = (!services).then(TraceId::random);
    let result = match arguments.command {
        // Before any runtime of ours: the machine process makes its own, in its own session.
        Command::Machine { directory } => {
            vmotion_agent::process::run(&directory).map_err(|reason| anyhow::anyhow!(reason))
        }
        command => tokio::runtime::Builder::new_multi_thread()
            .enable_all()
            .build()
            .map_err(anyhow::Error::from)
            .and_then(|runtime| runtime.block_on(within(trace, commands::run(command, &arguments.global)))),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => failure::report(&error, arguments.global.json),
    }
}

/// What SIGPIPE ends with.
const NOBODY_READS: i32 = 128 + 13;

/// `vmotion moves | head` ends when `head` has seen enough, as every program does; the standard library would call it a panic. For
/// commands that leave nothing behind.
fn end_without_a_reader() {
    let report = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        let words = panic.payload_as_str().unwrap_or_default();
        if words.starts_with("failed printing to stdout") && words.contains("Broken pipe") {
            std::process::exit(NOBODY_READS);
        }
        report(panic);
    }));
}
