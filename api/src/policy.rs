//! The declared model of a site, the policy, and its plans: what operators ask of a controller that keeps every machine where it belongs.

use crate::{client::ClientError, controller::ControllerClient};
use reqwest::Method;
use serde::{Deserialize, Serialize};
use std::fmt;
use vmotion_model::{
    Contradiction, Explanation, HostName, HostTelemetry, MachineName, MachineTelemetry, MoveId, Plan, PolicyMode,
    PolicySpec, SiteChange, SiteSpec, Subject, Supposed, WhatIf,
};

/// `PUT /v1/site`: what is to be.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct ApplyRequest {
    /// The whole model; it takes the place of the one before.
    pub site: SiteSpec,
    /// Stop and remove machines that the model before declared and this one does not.
    #[serde(default)]
    pub prune: bool,
    /// Only say what would change.
    #[serde(default)]
    pub dry_run: bool,
}

/// What applying a model changed, or would change.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Applied {
    /// One thing each; empty when everything is as declared.
    pub changes: Vec<SiteChange>,
    /// Rules that contradict each other: with any, nothing was applied.
    #[serde(default)]
    pub contradictions: Vec<Contradiction>,
}

/// `GET /v1/site`: what is declared, and what of it is not so yet.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct SiteView {
    /// The model, with the policy as it is set now.
    pub site: SiteSpec,
    /// Machines that are declared and not there yet.
    pub missing: Vec<Missing>,
}

/// A machine that is declared and not there.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Missing {
    /// Which.
    pub machine: MachineName,
    /// Why it could not be created when that was tried last.
    #[serde(default)]
    pub why: Option<String>,
}

/// A plan's name: `plan7`.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(try_from = "String", into = "String")]
pub struct PlanId(u64);

impl PlanId {
    /// The `number`th plan.
    #[must_use]
    pub const fn numbered(number: u64) -> Self {
        Self(number)
    }
}

impl fmt::Display for PlanId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&format!("plan{}", self.0))
    }
}

impl std::str::FromStr for PlanId {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let number = text.strip_prefix("plan").filter(|digits| digits.bytes().all(|byte| byte.is_ascii_digit()));
        let parsed = number.and_then(|digits| digits.parse().ok()).map(Self);
        parsed.ok_or_else(|| format!("Plan {text:?} is not valid: use a plan's name, such as plan7"))
    }
}

impl TryFrom<String> for PlanId {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

impl From<PlanId> for String {
    fn from(id: PlanId) -> Self {
        id.to_string()
    }
}

/// What a plan is for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(tag = "goal", rename_all = "kebab-case")]
pub enum PlanGoal {
    /// Everything where it belongs: rules kept, load spread, pieces near what they share with.
    Rebalance,
    /// Nothing on this host.
    Drain {
        /// Which.
        host: HostName,
    },
    /// What this plan has moved, or one of its steps, is where it was before.
    Undo {
        /// Which. Named so because the view of a plan, into which this is flattened, has a `plan`.
        undoes: PlanId,
        /// Only this step; `None` for all of them.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        step: Option<u32>,
    },
}

impl PlanGoal {
    /// Its kind in one word.
    #[must_use]
    pub const fn word(&self) -> &'static str {
        match self {
            Self::Rebalance => "rebalance",
            Self::Drain { .. } => "drain",
            Self::Undo { .. } => "undo",
        }
    }
}

impl fmt::Display for PlanGoal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Rebalance => f.write_str("rebalance"),
            Self::Drain { host } => write!(f, "drain {host}"),
            Self::Undo { undoes, step: None } => write!(f, "undo {undoes}"),
            Self::Undo { undoes, step: Some(step) } => write!(f, "undo step {step} of {undoes}"),
        }
    }
}

/// How far a plan is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "kebab-case")]
pub enum PlanState {
    /// Steps are begun as the ones before them are over.
    Running,
    /// Every step is done.
    Done,
    /// The world changed: what was left of it is planned anew where it is still needed.
    Superseded,
    /// An operator ended it; moves that had begun go on.
    Cancelled,
}

/// How far a step is.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(tag = "state", rename_all = "kebab-case")]
pub enum StepState {
    /// It waits for its turn.
    #[default]
    Waiting,
    /// It is under way.
    Moving {
        /// As this move.
        id: MoveId,
    },
    /// Its machine is where it was to go.
    Done {
        /// By this move.
        id: MoveId,
    },
    /// It was begun and came to nothing.
    Failed {
        /// Why.
        why: String,
    },
    /// It was not begun: when its turn came the world had changed.
    Dropped {
        /// How.
        why: String,
    },
}

/// A plan that is carried out, or was.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct PlanView {
    /// Its name.
    pub id: PlanId,
    /// What for.
    #[serde(flatten)]
    pub goal: PlanGoal,
    /// Who asked: an operator by name, or `policy`.
    pub asked_by: String,
    /// When, in ms since the epoch.
    pub created_unix_ms: u64,
    /// How far it is.
    pub state: PlanState,
    /// What is done, and why.
    pub plan: Plan,
    /// How far each step is, in the order of the plan's.
    pub progress: Vec<StepState>,
}

/// `POST /v1/rebalance`.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct RebalanceRequest {
    /// Only say what would be done, and why: answered with a [`Plan`].
    #[serde(default)]
    pub dry_run: bool,
}

/// `POST /v1/hosts/{name}/drain`.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct DrainRequest {
    /// When the host is to be empty, in ms since the epoch; `None` for as soon as it can be.
    #[serde(default)]
    pub by_unix_ms: Option<u64>,
    /// The pause that each move may cost, in ms; `None` for what the policy is set to.
    #[serde(default)]
    pub downtime_ms_max: Option<u32>,
    /// Only say what would be done, and whether it would be done in time: answered with a [`Plan`].
    #[serde(default)]
    pub dry_run: bool,
}

/// `POST /v1/plans/{id}/undo`.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(deny_unknown_fields)]
pub struct UndoRequest {
    /// Only what this step has moved, by its number; `None` for all that the plan has moved.
    #[serde(default)]
    pub step: Option<u32>,
    /// Only say what would be moved back, and what cannot be: answered with a [`Plan`].
    #[serde(default)]
    pub dry_run: bool,
}

/// `PATCH /v1/policy`: what is absent stays.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(deny_unknown_fields)]
pub struct PolicyChange {
    /// By itself, or only when asked.
    #[serde(default)]
    pub mode: Option<PolicyMode>,
    /// Moves for balance that are begun in any hour at most.
    #[serde(default)]
    pub moves_per_hour_max: Option<u32>,
    /// Part of a host's processors, in percent, up to which everybody on it is content.
    #[serde(default)]
    pub cpu_percent_content: Option<u8>,
    /// The pause that a move for balance may cost, in ms.
    #[serde(default)]
    pub downtime_ms_max: Option<u32>,
    /// How long demand must have been seen, in s.
    #[serde(default)]
    pub hold_s: Option<u32>,
    /// How long a machine stays after a move for balance, in s.
    #[serde(default)]
    pub cooldown_s: Option<u32>,
    /// How long a machine stays where an operator put it, in s.
    #[serde(default)]
    pub respect_s: Option<u32>,
}

/// The policy, and what it is doing.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct PolicyView {
    /// How it is to act.
    pub policy: PolicySpec,
    /// Moves for balance that it began in the last hour.
    pub moves_last_hour: u32,
    /// What it looked at last, and what came of it, in a sentence.
    #[serde(default)]
    pub last_look: Option<String>,
    /// Machines that it leaves alone, and why.
    #[serde(default)]
    pub left_alone: Vec<LeftAlone>,
}

/// A machine that the policy does not move for now.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct LeftAlone {
    /// Which.
    pub machine: MachineName,
    /// Why.
    pub why: String,
    /// For how long, in s.
    pub for_s: u64,
}

/// What a host and what is on it use, as its agent measured it last.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct HostUse {
    /// Which.
    pub host: HostName,
    /// How old it is, in ms.
    pub age_ms: u64,
    /// What the host uses; `None` when its agent does not say.
    pub telemetry: Option<HostTelemetry>,
    /// What the machines on it use.
    pub machines: Vec<MachineUse>,
}

/// What a machine uses on a host.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct MachineUse {
    /// Which.
    pub machine: MachineName,
    /// What it uses.
    #[serde(flatten)]
    pub telemetry: MachineTelemetry,
}

type Answer<T> = Result<T, ClientError>;

impl ControllerClient {
    /// What is declared.
    ///
    /// # Errors
    /// [`ClientError`], as for every call here.
    pub async fn site(&self) -> Answer<SiteView> {
        self.http.get("/v1/site").await
    }

    /// Declares a model, or says what that would change. The same model again changes nothing.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn apply(&self, request: &ApplyRequest) -> Answer<Applied> {
        self.http.call(Method::PUT, "/v1/site", request).await
    }

    /// The policy, and what it is doing.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn policy(&self) -> Answer<PolicyView> {
        self.http.get("/v1/policy").await
    }

    /// Changes how the policy is to act.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn set_policy(&self, change: &PolicyChange) -> Answer<PolicyView> {
        self.http.call(Method::PATCH, "/v1/policy", change).await
    }

    /// What would be moved, and why.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn rebalance_dry_run(&self) -> Answer<Plan> {
        self.http.call(Method::POST, "/v1/rebalance", &RebalanceRequest { dry_run: true }).await
    }

    /// Moves everything where it belongs.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn rebalance(&self) -> Answer<PlanView> {
        self.http.call(Method::POST, "/v1/rebalance", &RebalanceRequest::default()).await
    }

    /// What draining a host would do, and until when.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn drain_dry_run(&self, host: &HostName, request: &DrainRequest) -> Answer<Plan> {
        let request = DrainRequest { dry_run: true, ..request.clone() };
        self.http.call(Method::POST, &format!("/v1/hosts/{host}/drain"), &request).await
    }

    /// Empties a host; nothing comes to it until it is uncordoned.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn drain(&self, host: &HostName, request: &DrainRequest) -> Answer<PlanView> {
        self.http.call(Method::POST, &format!("/v1/hosts/{host}/drain"), request).await
    }

    /// Plans, oldest first.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn plans(&self) -> Answer<Vec<PlanView>> {
        self.http.get("/v1/plans").await
    }

    /// One plan.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn plan(&self, id: &PlanId) -> Answer<PlanView> {
        self.http.get(&format!("/v1/plans/{id}")).await
    }

    /// Begins no more steps of a plan.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn cancel_plan(&self, id: &PlanId) -> Answer<PlanView> {
        self.http.delete(&format!("/v1/plans/{id}")).await
    }

    /// What undoing a plan, or one step of it, would move back.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn undo_plan_dry_run(&self, id: &PlanId, step: Option<u32>) -> Answer<Plan> {
        let request = UndoRequest { step, dry_run: true };
        self.http.call(Method::POST, &format!("/v1/plans/{id}/undo"), &request).await
    }

    /// Moves what a plan, or one step of it, has moved back to where it was.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn undo_plan(&self, id: &PlanId, step: Option<u32>) -> Answer<PlanView> {
        let request = UndoRequest { step, dry_run: false };
        self.http.call(Method::POST, &format!("/v1/plans/{id}/undo"), &request).await
    }

    /// Why a machine, or a piece of one, is where it is; or why it is not on `host`.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn why(&self, about: &Subject, host: Option<&HostName>) -> Answer<Explanation> {
        let Subject { machine, piece } = about;
        let host = host.map(|host| format!("host={host}&")).unwrap_or_default();
        let piece = piece.map(|piece| format!("piece={piece}")).unwrap_or_default();
        self.http.get(&format!("/v1/machines/{machine}/why?{host}{piece}")).await
    }

    /// What the policy would do with other hosts and other demand.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn what_if(&self, what_if: &WhatIf) -> Answer<Supposed> {
        self.http.call(Method::POST, "/v1/what-if", what_if).await
    }

    /// What hosts and machines use.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn usage(&self) -> Answer<Vec<HostUse>> {
        self.http.get("/v1/usage").await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_plan_is_read_as_it_is_written_whatever_it_is_for() {
        let (host, undoes) = ("h1".parse().unwrap(), PlanId::numbered(3));
        let step = Some(2);
        for goal in [PlanGoal::Rebalance, PlanGoal::Drain { host }, PlanGoal::Undo { undoes, step }] {
            let view = PlanView {
                id: PlanId::numbered(7),
                goal,
                asked_by: "alice".to_owned(),
                created_unix_ms: 1,
                state: PlanState::Done,
                plan: Plan::default(),
                progress: Vec::new(),
            };
            let written = serde_json::to_string(&view).unwrap();
            assert_eq!(serde_json::from_str::<PlanView>(&written).unwrap(), view, "{written}");
        }
    }

    #[test]
    fn a_plans_name_is_read_as_it_is_written() {
        assert_eq!("plan7".parse(), Ok(PlanId::numbered(7)));
        assert_eq!(PlanId::numbered(7).to_string(), "plan7");
        for bad in ["", "plan", "7", "plan-7", "plan+7"] {
            assert!(bad.parse::<PlanId>().is_err(), "{bad}");
        }
    }
}
