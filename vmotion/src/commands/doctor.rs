//! Can this host run machines, and take them in?

use crate::{
    arguments::{DoctorArguments, Global},
    context, output,
};
use anyhow::Result;
use vmotion_agent::doctor::{DoctorOptions, Finding, Severity, examine};
use vmotion_model::{ApiError, ErrorCode, HostState};

/// Exit code when the world does not allow it.
const EXIT_REFUSED: i32 = 5;

pub(super) async fn run(arguments: DoctorArguments, global: &Global) -> Result<()> {
    let DoctorArguments { data, address, move_ports } = arguments;
    let identity = global.identity.clone().or_else(|| Some(data.join("identity")).filter(|path| path.exists()));
    let options = DoctorOptions { data, identity, address, move_ports: move_ports.0..=move_ports.1 };
    let mut findings = tokio::task::spawn_blocking(move || examine(&options)).await?;
    findings.push(controller(global).await);
    if global.json {
        output::json(&findings)?;
    } else {
        output::findings(&findings);
    }
    if findings.iter().any(|finding| finding.severity == Severity::Failure) {
        std::process::exit(EXIT_REFUSED);
    }
    Ok(())
}

async fn controller(global: &Global) -> Finding {
    const CHECK: &str = "controller";
    let client = match context::client(global) {
        Ok(client) => client,
        Err(error) => {
            return Finding::warning(CHECK, format!("{error:#}"), "give --controller URL to look at it as well");
        }
    };
    match client.hosts().await.map_err(|error| error.into_api_error()) {
        Ok(hosts) => {
            let up = hosts.iter().filter(|host| host.state == HostState::Up).count();
            Finding::ok(CHECK, format!("it answers, and hears {up} of {} hosts", hosts.len()))
        }
        // Only operators may list hosts; a host that is refused has been heard.
        Err(ApiError { code: ErrorCode::Forbidden, .. }) => {
            Finding::ok(CHECK, "it answers, and knows this certificate")
        }
        Err(error) => {
            Finding::warning(CHECK, error.to_string(), "look at its log, its address and whether a firewall is between")
        }
    }
}
