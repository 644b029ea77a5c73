//! Creating, listing, stopping and removing machines.

use super::request_key;
use crate::{
    arguments::{CreateArguments, Dirty, Global, Interrupts},
    context, output,
};
use anyhow::{Context as _, Result};
use std::path::{Path, PathBuf};
use vmotion_api::{CreateRequest, SnapshotRequest};
use vmotion_model::{Backing, DirtySource, DiskSpec, InterruptController, MachineName, MachineSpec};

pub(super) async fn create(arguments: CreateArguments, global: &Global) -> Result<()> {
    let client = context::client(global)?;
    let CreateArguments {
        name,
        kernel,
        initrd,
        cmdline,
        memory,
        cpus,
        disk,
        on,
        huge_pages,
        dirty,
        interrupts,
        span,
        audit,
        from,
        dry_run,
    } = arguments;
    let absolute_disk = |disk: DiskSpec| Ok::<_, anyhow::Error>(DiskSpec { path: absolute(&disk.path)?, ..disk });
    let spec = MachineSpec {
        name,
        cpus,
        memory,
        // With a snapshot the spec is the snapshot's; only the name is looked at.
        kernel: kernel.as_deref().map(absolute).transpose()?.unwrap_or_default(),
        initrd: initrd.as_deref().map(absolute).transpose()?,
        cmdline,
        disks: disk.into_iter().map(absolute_disk).collect::<Result<_>>()?,
        backing: if huge_pages { Backing::Huge2m } else { Backing::Memfd },
        dirty_source: match dirty {
            Dirty::Auto => DirtySource::Auto,
            Dirty::Log => DirtySource::Log,
            Dirty::Ring => DirtySource::Ring,
        },
        interrupts: match interrupts {
            // KVM's controllers know only the vCPUs of their own host.
            None if !span.is_empty() => InterruptController::User,
            None | Some(Interrupts::Kernel) => InterruptController::Kernel,
            Some(Interrupts::User) => InterruptController::User,
        },
    };
    let from = from.as_deref().map(absolute).transpose()?;
    let request = CreateRequest { spec, on, from, span, audit, dry_run };
    if dry_run {
        let placement = client.create_dry_run(&request).await?;
        if global.json {
            return output::json(&placement);
        }
        output::placement(&placement);
        return Ok(());
    }
    let machine = client.create(&request, &request_key()).await?;
    if global.json {
        return output::json(&machine);
    }
    match output::pieces(&machine.pieces).as_str() {
        "" => println!("{} runs on {}", machine.name, machine.host),
        pieces => println!("{} runs: {pieces}", machine.name),
    }
    Ok(())
}

/// Relative paths mean the operator's directory; hosts get absolute ones.
fn absolute(path: &Path) -> Result<PathBuf> {
    std::path::absolute(path).with_context(|| format!("Path {} cannot be used", path.display()))
}

pub(super) async fn list(global: &Global) -> Result<()> {
    let machines = context::client(global)?.machines().await?;
    if global.json {
        return output::json(&machines);
    }
    output::machines(&machines);
    Ok(())
}

pub(super) async fn show(name: &MachineName, advise: bool, auto: bool, global: &Global) -> Result<()> {
    let client = context::client(global)?;
    if auto {
        let advice = client.shape(name).await?.advice;
        if !advice.is_empty() {
            if !global.json {
                output::advice(&advice);
            }
            return super::moves::follow_advice(&client, name, global).await;
        }
    }
    if advise {
        let shape = client.shape(name).await?;
        if global.json {
            return output::json(&shape);
        }
        output::advice(&shape.advice);
        return Ok(());
    }
    let machine = client.machine(name).await?;
    if global.json {
        return output::json(&machine);
    }
    output::machine(&machine);
    if !machine.pieces.is_empty() {
        output::shape(&client.shape(name).await?);
    }
    Ok(())
}

pub(super) async fn stop(name: &MachineName, global: &Global) -> Result<()> {
    let machine = context::client(global)?.stop(name).await?;
    if global.json {
        return output::json(&machine);
    }
    println!("{} is stopped", machine.name);
    Ok(())
}

pub(super) async fn remove(name: &MachineName, global: &Global) -> Result<()> {
    context::client(global)?.remove(name).await?;
    if !global.json {
        println!("{name} is removed");
    }
    Ok(())
}

pub(super) async fn snapshot(name: &MachineName, directory: PathBuf, global: &Global) -> Result<()> {
    let directory = absolute(&directory)?;
    context::client(global)?.snapshot(name, &SnapshotRequest { directory: directory.clone() }).await?;
    if !global.json {
        println!("{name} is saved in {} on its host", directory.display());
    }
    Ok(())
}
