//! What `vmotion audit` is asked.

use clap::Args;
use vmotion_api::Seal;

#[derive(Debug, Args)]
pub(crate) struct AuditArguments {
    /// So many of the latest entries
    #[arg(long, default_value_t = 40, value_name = "COUNT", conflicts_with = "all")]
    pub(crate) last: u64,
    /// Every entry that is kept
    #[arg(long)]
    pub(crate) all: bool,
    /// Only of callers whose certificates' URIs contain this, such as admin/bob or host/
    #[arg(long, value_name = "TEXT")]
    pub(crate) who: Option<String>,
    /// Only entries whose path, request or answer contains this, such as vm1
    #[arg(long, value_name = "TEXT")]
    pub(crate) about: Option<String>,
    /// Look whether every kept entry is as it was written, instead of printing them; exit code 5 when one is not
    #[arg(long, conflicts_with_all = ["last", "all", "who", "about"])]
    pub(crate) verify: bool,
    /// With --verify: also whether this entry, which an earlier --verify printed, is still the same
    #[arg(long, requires = "verify", value_name = "NUMBER:HASH")]
    pub(crate) known: Option<Seal>,
}
