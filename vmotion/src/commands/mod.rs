//! One function a command.

mod audit;
mod console;
mod doctor;
mod machines;
mod man;
mod moves;
mod pki;
mod policy;
mod services;
mod simulate;

pub(crate) use services::{issue_host, make_authority};

use crate::{
    arguments::{Arguments, Command, Global, HostCommand, PlansCommand},
    context, demo, output, top,
};
use anyhow::Result;
use clap::CommandFactory as _;
use vmotion_api::DrainRequest;

/// Runs one command.
pub(crate) async fn run(command: Command, global: &Global) -> Result<()> {
    match command {
        Command::Demo(arguments) => demo::run(arguments, global.json).await,
        Command::Controller(arguments) => services::controller(arguments, global).await,
        Command::Store(command) => services::store(command, global).await,
        Command::Agent(arguments) => services::agent(arguments, global).await,
        Command::Create(arguments) => machines::create(arguments, global).await,
        Command::Ls => machines::list(global).await,
        Command::Show { machine, advise, auto } => machines::show(&machine, advise, auto, global).await,
        Command::Stop { machine } => machines::stop(&machine, global).await,
        Command::Rm { machine } => machines::remove(&machine, global).await,
        Command::Snapshot { machine, directory } => machines::snapshot(&machine, directory, global).await,
        Command::Console(arguments) => console::run(arguments, global).await,
        Command::Move(arguments) => moves::start(arguments, global).await,
        Command::Span { machine, over, dry_run, detach } => {
            moves::spread(&machine, over, dry_run, detach, global).await
        }
        Command::Moves { id, command: None } => moves::list(id, global).await,
        Command::Moves { command: Some(command), .. } => moves::one(command, global).await,
        Command::Cancel { id } => moves::cancel(&id, global).await,
        Command::Apply { file, dry_run, prune, detach } => policy::apply(&file, dry_run, prune, detach, global).await,
        Command::Site => policy::site(global).await,
        Command::Rebalance { dry_run, detach } => policy::rebalance(dry_run, detach, global).await,
        Command::Plans { id, command: None } => policy::plans(id, global).await,
        Command::Plans { command: Some(PlansCommand::Cancel { id }), .. } => policy::cancel(&id, global).await,
        Command::Plans { command: Some(PlansCommand::Undo { id, step, dry_run, detach }), .. } => {
            policy::undo(&id, step, dry_run, detach, global).await
        }
        Command::Policy(command) => policy::policy(command, global).await,
        Command::Why { what } => policy::why(what, None, global).await,
        Command::WhyNot { what, host } => policy::why(what, Some(&host), global).await,
        Command::WhatIf(arguments) => policy::what_if(arguments, global).await,
        Command::Simulate(arguments) => simulate::run(arguments, global).await,
        Command::Host(HostCommand::Drain { host, by, max_downtime, dry_run, detach }) => {
            let request = DrainRequest { by_unix_ms: by, downtime_ms_max: max_downtime, dry_run };
            policy::drain(&host, &request, detach, global).await
        }
        Command::Host(command) => hosts(command, global).await,
        Command::Doctor(arguments) => doctor::run(arguments, global).await,
        Command::Top(arguments) => top::run(arguments, global).await,
        Command::Audit(arguments) => audit::run(arguments, global).await,
        Command::Pki(command) => pki::run(command),
        Command::Man { directory } => man::write(&directory),
        Command::Completions { shell } => {
            let mut script = Vec::new();
            clap_complete::generate(shell, &mut Arguments::command(), "vmotion", &mut script);
            print!("{}", String::from_utf8_lossy(&script));
            Ok(())
        }
        // Handled before there is a runtime.
        Command::Machine { .. } => Ok(()),
    }
}

async fn hosts(command: HostCommand, global: &Global) -> Result<()> {
    let client = context::client(global)?;
    let hosts = match command {
        HostCommand::Ls => client.hosts().await?,
        HostCommand::Cordon { host } => vec![client.cordon(&host, true).await?],
        HostCommand::Uncordon { host } => vec![client.cordon(&host, false).await?],
        // It has an answer of its own.
        HostCommand::Drain { .. } => Vec::new(),
    };
    if global.json {
        return output::json(&hosts);
    }
    output::hosts(&hosts);
    Ok(())
}

/// A key that makes a request idempotent: new for each command typed, the same for its repetitions.
pub(crate) fn request_key() -> String {
    String::from(vmotion_transport::session::MoveTicket::random()).chars().take(32).collect()
}
