//! Manual pages, made from the same help texts that the commands print.

use crate::arguments::Arguments;
use anyhow::{Context as _, Result};
use clap::CommandFactory as _;
use std::{fs, path::Path};

/// Writes a page for the program and one for each command into `directory`, which is made when it is missing.
pub(super) fn write(directory: &Path) -> Result<()> {
    fs::create_dir_all(directory).with_context(|| format!("Cannot create {}", directory.display()))?;
    let written = clap_mangen::generate_to(Arguments::command(), directory);
    written.with_context(|| format!("Cannot write manual pages into {}", directory.display()))?;
    println!("manual pages are in {}; read one: man -l {}", directory.display(), directory.join("vmotion.1").display());
    Ok(())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a panic in a test is its report")]

    use super::*;

    #[test]
    fn every_command_that_is_shown_has_a_page() {
        let place = tempfile::tempdir().unwrap();
        let directory = place.path().join("man1");
        write(&directory).unwrap();
        assert!(fs::read_to_string(directory.join("vmotion.1")).unwrap().contains("Live migration"));
        for command in Arguments::command().get_subcommands() {
            let page = directory.join(format!("vmotion-{}.1", command.get_name()));
            assert_eq!(page.exists(), !command.is_hide_set(), "{}", page.display());
        }
        assert!(fs::read_to_string(directory.join("vmotion-host-drain.1")).unwrap().contains("max\\-downtime"));
    }
}
