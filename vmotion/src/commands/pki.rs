//! Certificates by hand, for hosts that are not this one.

use crate::arguments::{PkiCommand, Role};
use anyhow::Result;
use vmotion_transport::{Principal, pki::Authority};

pub(super) fn run(command: PkiCommand) -> Result<()> {
    match command {
        PkiCommand::Init { directory } => {
            Authority::create(&directory)?;
            println!("made an authority in {}", directory.display());
            println!("next: vmotion pki issue host h1 --ca {} --out h1-identity", directory.display());
        }
        PkiCommand::Issue { role, name, ca, out } => {
            let principal = match role {
                Role::Host => Principal::Host(name),
                Role::Controller => Principal::Controller(name),
                Role::Operator => Principal::Operator(name),
            };
            Authority::open(&ca)?.issue(&principal, &out)?;
            println!("issued {principal} into {}", out.display());
        }
    }
    Ok(())
}
