//! Running a controller or an agent.

use crate::{
    arguments::{AgentArguments, ControllerArguments, Global, StoreCommand},
    context::LocalContext,
    output,
};
use anyhow::{Context as _, Result};
use std::{
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};
use tokio::signal::unix::{SignalKind, signal};
use vmotion_agent::AgentOptions;
use vmotion_controller::{ControllerOptions, Copied, StoreOptions};
use vmotion_model::{ApiError, ErrorCode, HostName};
use vmotion_transport::{Identity, Principal, pki::Authority};

/// Where a controller's file is in its data directory.
const STORE: &str = "store";

/// The authority in `directory` and the two identities a controller's machine needs; made when missing.
pub(crate) fn make_authority(directory: &Path) -> Result<(Authority, PathBuf, PathBuf)> {
    let authority = Authority::open_or_create(directory)?;
    let controller = directory.join("controller");
    let admin = directory.join("admin");
    let name = |text: &str| text.parse::<HostName>();
    for (path, principal) in
        [(&controller, Principal::Controller(name("controller")?)), (&admin, Principal::Admin(name("admin")?))]
    {
        if !path.join("cert.pem").exists() {
            authority.issue(&principal, path)?;
        }
    }
    Ok((authority, controller, admin))
}

/// An identity for a host in `directory`; made when missing.
pub(crate) fn issue_host(authority: &Authority, name: &HostName, directory: &Path) -> Result<()> {
    if !directory.join("cert.pem").exists() {
        authority.issue(&Principal::Host(name.clone()), directory)?;
    }
    Ok(())
}

pub(super) async fn controller(arguments: ControllerArguments, global: &Global) -> Result<()> {
    let ControllerArguments { data, listen, advertise, name, etcd, access } = arguments;
    std::fs::create_dir_all(&data).with_context(|| format!("Cannot create {}", data.display()))?;
    let data = data.canonicalize().with_context(|| format!("Cannot use {}", data.display()))?;
    let authority = data.join("pki");
    let (identity, admin) = match &global.identity {
        Some(identity) => (identity.clone(), None),
        None => {
            let (_, controller, admin) = make_authority(&authority)?;
            (controller, Some(admin))
        }
    };
    let identity = Arc::new(Identity::load(&identity)?);
    let store =
        if etcd.is_empty() { StoreOptions::File(data.join(STORE)) } else { StoreOptions::Etcd(access.of(etcd)) };
    let mut options = ControllerOptions::new(store, listen, identity);
    options.advertise = advertise.clone();
    if let Some(name) = name {
        options.name = name.to_string();
    }
    let ready = move |address: std::net::SocketAddr| {
        let url = advertise.unwrap_or_else(|| format!("https://{address}"));
        println!("controller at {url}");
        if let Some(admin) = admin {
            let context =
                LocalContext { controller: url.clone(), identity: admin.clone(), authority: authority.clone() };
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
    vmotion_controller::run(options, ready, stop_signal()?).await.map_err(ApiError::from)?;
    Ok(())
}

pub(super) async fn store(command: StoreCommand, global: &Global) -> Result<()> {
    let StoreCommand::Copy { from, to, access } = command;
    let copied = vmotion_controller::copy_store(&from.join(STORE), &access.of(to)).await;
    let Copied { entries, bytes } = copied.map_err(ApiError::from)?;
    if global.json {
        return output::json(&serde_json::json!({ "entries": entries, "bytes": bytes }));
    }
    println!("copied {entries} entries of {bytes} bytes, and read them back");
    println!("next: start controllers with the same --etcd; the file in {} is not used any more", from.display());
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
