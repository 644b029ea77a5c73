//! Which controller, and as whom: from options, the environment, or what this user last started here.

use crate::arguments::Global;
use anyhow::{Context as _, Result};
use serde::{Deserialize, Serialize};
use std::{
    fs,
    path::{Path, PathBuf},
};
use vmotion_api::ControllerClient;
use vmotion_model::{ApiError, ErrorCode};
use vmotion_transport::Identity;

/// What `vmotion controller` leaves for commands on the same machine.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct LocalContext {
    /// URL of the controller.
    pub(crate) controller: String,
    /// Directory of an operator's identity.
    pub(crate) identity: PathBuf,
    /// Directory of the authority, so that an agent started by the same user gets its certificate by itself.
    pub(crate) authority: PathBuf,
}

/// `$VMOTION_HOME`, or `.vmotion` in the user's home directory.
fn home() -> Option<PathBuf> {
    let explicit = std::env::var_os("VMOTION_HOME").map(PathBuf::from);
    explicit.or_else(|| std::env::var_os("HOME").map(|home| PathBuf::from(home).join(".vmotion")))
}

impl LocalContext {
    /// What was left here, if anything.
    pub(crate) fn load() -> Option<Self> {
        toml::from_str(&fs::read_to_string(home()?.join("context.toml")).ok()?).ok()
    }

    /// Leaves it for later commands; where.
    pub(crate) fn save(&self) -> Result<PathBuf> {
        let directory = home().context("Neither VMOTION_HOME nor HOME is set")?;
        let path = directory.join("context.toml");
        fs::create_dir_all(&directory).with_context(|| format!("Cannot create {}", directory.display()))?;
        fs::write(&path, toml::to_string(self)?).with_context(|| format!("Cannot write {}", path.display()))?;
        Ok(path)
    }
}

/// The controller to talk to.
pub(crate) fn client(global: &Global) -> Result<ControllerClient> {
    let local = LocalContext::load();
    let missing = |what: &str, option: &str| {
        let message = format!("{what} is not known");
        ApiError::new(ErrorCode::Invalid, message)
            .with_hint(format!("give {option}, or start `vmotion controller` here"))
    };
    let url = global.controller.clone().or_else(|| local.as_ref().map(|local| local.controller.clone()));
    let url = url.ok_or_else(|| missing("The controller's URL", "--controller URL"))?;
    let identity = global.identity.clone().or_else(|| local.map(|local| local.identity));
    let identity = identity.ok_or_else(|| missing("Your identity", "--identity DIR"))?;
    connect(&url, &identity)
}

/// A client of the controller at `url`, as the identity in `directory`.
pub(crate) fn connect(url: &str, directory: &Path) -> Result<ControllerClient> {
    let identity = Identity::load(directory)?;
    Ok(ControllerClient::new(url, &identity)?)
}
