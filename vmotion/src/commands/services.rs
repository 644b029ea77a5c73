//! Running a controller or an agent.

use crate::{
    arguments::{AgentArguments, ControllerArguments, Global},
    context::LocalContext,
};
use anyhow::{Context as _, Result};
use std::{
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};
use tokio::signal::unix::{SignalKind, signal};
use vmotion_agent::AgentOptions;
use vmotion_controller::ControllerOptions;
use vmotion_model::{ApiError, ErrorCode, HostName};
use vmotion_transport::{Identity, Principal, pki::Authority};

/// The authority in `directory` and the two identities a controller's machine needs; made when missing.
pub(crate) fn make_authority(directory: &Path) -> Result<(Authority, PathBuf, PathBuf)> {
    let authority = Authority::open_or_create(directory)?;
    let controller = directory.join("controller");
    let operator = directory.join("operator");
    let name = |text: &str| text.parse::<HostName>();
    for (path, principal) in
        [(&controller, Principal::Controller(name("controller")?)), (&operator, Principal::Operator(name("operator")?))]
    {
        if !path.join("cert.pem").exists() {
            authority.issue(&principal, path)?;
        }
    }
    Ok((authority, controller, operator))
}

/// An identity for a host in `directory`; made when missing.
pub(crate) fn issue_host(authority: &Authority, name: &HostName, directory: &Path) -> Result<()> {
    if !directory.join("cert.pem").exists() {
        authority.issue(&Principal::Host(name.clone()), directory)?;
    }
    Ok(())
}

pub(super) async fn controller(arguments: ControllerArguments, global: &Global) -> Result<()> {
    let ControllerArguments { data, listen, advertise } = arguments;
    std::fs::create_dir_all(&data).with_context(|| format!("Cannot create {}", data.display()))?;
    let data = data.canonicalize().with_context(|| format!("Cannot use {}", data.display()))?;
    let authority = data.join("pki");
    let (identity, operator) = match &global.identity {
        Some(identity) => (identity.clone(), None),
        None => {
            let (_, controller, operator) = make_authority(&authority)?;
            (controller, Some(operator))
        }
    };
    let identity = Arc::new(Identity::load(&identity)?);
    let gone_after = ControllerOptions::GONE_AFTER;
    let options = ControllerOptions { data: data.join("store"), listen, identity, gone_after };
    let ready = move |address: std::net::SocketAddr| {
        let url = advertise.unwrap_or_else(|| format!("https://{address}"));
        println!("controller at {url}");
        if let Some(operator) = operator {
            let context =
                LocalContext { controller: url.clone(), identity: operator.clone(), authority: authority.clone() };
            match context.save() {
                Ok(path) => println!("commands of this user use it by default ({})", path.display()),
                Err(error) => eprintln!("warning: {error:#}"),
            }
            println!("join a host of this machine:   vmotion agent --name h1 --dc dc1 --data ./h1");
            println!(
                "join another host:             vmotion pki issue host h1 --ca {} --out h1-identity",
                authority.display()
            );
            println!(
                "  copy h1-identity there, then vmotion agent --name h1 --dc dc1 --data ./h1 --controller {url} --identity ./h1-identity"
            );
        }
    };
    vmotion_controller::run(options, ready, stop_signal()?).await?;
    Ok(())
}

pub(super) async fn agent(arguments: AgentArguments, global: &Global) -> Result<()> {
    let AgentArguments { name, dc, data, listen, advertise, move_ports, peer_timeout } = arguments;
    let local = LocalContext::load();
    let controller = global.controller.clone().or_else(|| local.as_ref().map(|local| local.controller.clone()));
    let controller = controller.ok_or_else(|| {
        ApiError::new(ErrorCode::Invalid, "The controller's URL is not known")
            .with_hint("give --controller URL, as `vmotion controller` prints it")
    })?;
    std::fs::create_dir_all(&data).with_context(|| format!("Cannot create {}", data.display()))?;
    let identity = match &global.identity {
        Some(identity) => identity.clone(),
        None => {
            let identity = data.join("identity");
            if !identity.join("cert.pem").exists() {
                let authority = local.as_ref().map(|local| local.authority.clone());
                let authority = authority.filter(|path| path.is_dir()).ok_or_else(|| {
                    ApiError::new(ErrorCode::Invalid, format!("Host {name} has no certificate in {}", identity.display()))
                        .with_hint(format!("on the controller's machine: vmotion pki issue host {name} --ca DIR --out identity; copy it here, and give --identity"))
                })?;
                issue_host(&Authority::open(&authority)?, &name, &identity)?;
            }
            identity
        }
    };
    let options = AgentOptions {
        name: name.clone(),
        datacenter: dc,
        data,
        listen,
        advertise,
        move_ports: move_ports.0..=move_ports.1,
        peer_timeout: Duration::from_millis(peer_timeout),
        identity,
        controller: controller.clone(),
    };
    let ready = |address| println!("agent {name} at https://{address}, controller {controller}");
    vmotion_agent::run(options, ready, stop_signal()?).await?;
    Ok(())
}

/// Completes on SIGINT or SIGTERM.
fn stop_signal() -> Result<impl Future<Output = ()> + Send + 'static> {
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut terminate = signal(SignalKind::terminate())?;
    Ok(async move {
        tokio::select! {
            _ = interrupt.recv() => {}
            _ = terminate.recv() => {}
        }
    })
}
