//! Certificates by hand, for hosts that are not this one.

use crate::arguments::{Holder, PkiCommand};
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
                Holder::Host => Principal::Host(name),
                Holder::Controller => Principal::Controller(name),
                Holder::Viewer => Principal::Viewer(name),
                Holder::Operator => Principal::Operator(name),
                Holder::Admin => Principal::Admin(name),
            };
            Authority::open(&ca)?.issue(&principal, &out)?;
            println!("issued {principal} into {}", out.display());
        }
    }
    Ok(())
}
