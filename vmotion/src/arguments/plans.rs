//! The commands of `vmotion plans`.

use clap::Subcommand;
use vmotion_api::PlanId;

#[derive(Debug, Subcommand)]
pub(crate) enum PlansCommand {
    /// Begin no more steps of a plan; moves that have begun go on
    Cancel {
        /// Which
        id: PlanId,
    },
    /// Move what a plan has moved back to where it was; what somebody has moved since stays
    #[command(
        after_help = "An undo is a plan itself: every rule holds on the way, and it can be cancelled and undone. The policy leaves alone \
                      what went back, as it does whatever a person has moved (respect of vmotion policy).\n\nExit code 5 when not everything can go back."
    )]
    Undo {
        /// Which
        id: PlanId,
        /// Only what this step has moved
        #[arg(long, value_name = "NUMBER")]
        step: Option<u32>,
        /// Only say what would be moved back, and what cannot be
        #[arg(long)]
        dry_run: bool,
        /// Begin it, and do not wait for its end
        #[arg(long)]
        detach: bool,
    },
}
