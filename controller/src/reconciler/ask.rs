//! The one question of each phase, and how its answer becomes an event.

use super::show;
use crate::{
    accuracy,
    app::App,
    operations::{Event, MoveRecord, Phase},
    records::load_owner,
};
use std::{
    net::SocketAddr,
    time::{Duration, Instant},
};
use tokio::time::timeout;
use vmotion_api::{AgentClient, ClientError, IncomingRequest, MoveReport, Operation, OutgoingRequest};
use vmotion_model::{ApiError, ErrorCode, MachineState, MoveOutcome, MoveSummary};

/// A host that has not said how its move goes by then does not answer.
const REPORT_WITHIN: Duration = Duration::from_secs(5);
/// A target that is silent for so long is given up, where that is safe.
const TARGET_PATIENCE: Duration = Duration::from_secs(30);
/// Polls between looks at the source's process and repeated cancels.
const LOOK_EVERY: u32 = 40;
/// Answers in a row that must say the same before something is concluded from what is missing.
const SURE_AFTER: u32 = 5;

/// Asks, and remembers what must be seen more than once to be believed.
#[derive(Debug, Default)]
pub(super) struct Questioner {
    polls: u32,
    target_silent_since: Option<Instant>,
    /// Times in a row that the record named the target and the source had nothing to say.
    named: u32,
    /// Times in a row that the source did not know the move, or its machine's process was dead.
    missed: u32,
}

impl Questioner {
    /// What was seen counts for one phase only.
    pub(super) fn phase_changed(&mut self) {
        *self = Self::default();
    }

    /// Asks the question of the phase.
    pub(super) async fn ask(&mut self, app: &App, record: &MoveRecord) -> Result<Event, ApiError> {
        match self.ask_by_phase(app, record).await? {
            Event::RecordNamesTarget => Ok(ask_new_owner(app, record).await),
            Event::Summary(summary) if matches!(summary.outcome, MoveOutcome::Stranded { .. }) => {
                Ok(self.ask_stranded(app, record, summary).await)
            }
            event => Ok(event),
        }
    }

    /// A source that lost its path when the last page had just arrived cannot know that it had. The target does.
    async fn ask_stranded(&mut self, app: &App, record: &MoveRecord, mut summary: Box<MoveSummary>) -> Event {
        let Operation { id, machine, target, .. } = &record.operation;
        let answer = match app.agent(target) {
            Ok(agent) => timeout(REPORT_WITHIN, agent.machine(machine)).await,
            Err(error) => return self.stranded_unless_heard(error.message, summary),
        };
        match answer {
            Ok(Ok(status)) if status.pid.is_none() || status.state == MachineState::Failed => Event::Summary(summary),
            Ok(Ok(status)) if status.move_id.as_ref() == Some(id) => Event::TargetCommitting(format!(
                "{} lost its path to {target}, which has not said yet whether it has all of {machine}",
                record.operation.source
            )),
            Ok(Ok(_)) => {
                summary.outcome = MoveOutcome::Moved;
                Event::Summary(summary)
            }
            Ok(Err(ClientError::Answered(_))) => Event::Summary(summary),
            Ok(Err(error)) => self.stranded_unless_heard(error.to_string(), summary),
            Err(_) => self.stranded_unless_heard(format!("Host {target} does not answer"), summary),
        }
    }

    fn stranded_unless_heard(&mut self, reason: String, summary: Box<MoveSummary>) -> Event {
        match self.target_silent(reason) {
            Event::TargetSilent { patience_left: false, .. } => Event::Summary(summary),
            silent => silent,
        }
    }

    async fn ask_by_phase(&mut self, app: &App, record: &MoveRecord) -> Result<Event, ApiError> {
        match &record.phase {
            Phase::Preparing if record.cancel => Ok(Event::Cancelled),
            Phase::Preparing => Ok(self.ask_target(app, record).await),
            Phase::Launching { .. } if record.cancel => self.withdraw(app, record).await,
            Phase::Launching { address } => self.ask_source(app, record, *address).await,
            Phase::Copying => self.poll(app, record).await,
            Phase::Settling { .. } => self.release_target(app, record).await,
            // Steps are not questions; see `super::shape`.
            Phase::Reshaping { .. } | Phase::Finished => Ok(Event::GoingOn),
        }
    }

    fn target_silent(&mut self, reason: String) -> Event {
        let since = *self.target_silent_since.get_or_insert_with(Instant::now);
        Event::TargetSilent { reason, patience_left: since.elapsed() < TARGET_PATIENCE }
    }

    async fn ask_target(&mut self, app: &App, record: &MoveRecord) -> Event {
        let MoveRecord { operation, spec, record: owner, ticket, .. } = record;
        let agent = match app.agent(&operation.target) {
            Ok(agent) => agent,
            Err(error) => return self.target_silent(error.message),
        };
        let request = IncomingRequest {
            move_id: operation.id.clone(),
            spec: spec.clone(),
            record: owner.clone(),
            ticket: ticket.clone(),
            give_up_after_ms: operation.request.give_up_after_ms,
            trace: operation.trace.clone(),
        };
        match agent.incoming(&request).await {
            Ok(ready) => Event::TargetReady(ready.address),
            Err(ClientError::Answered(error)) => Event::TargetRefused(error.message),
            Err(error) => self.target_silent(error.to_string()),
        }
    }

    async fn ask_source(&mut self, app: &App, record: &MoveRecord, address: SocketAddr) -> Result<Event, ApiError> {
        let MoveRecord { operation, record: owner, ticket, .. } = record;
        let agent = match app.agent(&operation.source) {
            Ok(agent) => agent,
            Err(error) => return self.source_silent(app, record, error.message).await,
        };
        let request = OutgoingRequest {
            move_id: operation.id.clone(),
            record: owner.clone(),
            target: operation.target.clone(),
            address,
            ticket: ticket.clone(),
            request: operation.request.clone(),
            accuracy: accuracy::between(&*app.store, [&operation.source, &operation.target]).await?,
            trace: operation.trace.clone(),
        };
        match agent.outgoing(&request).await {
            Ok(report) => Ok(tell(app, record, report).unwrap_or(Event::Launched)),
            Err(ClientError::Answered(error)) => match error.code {
                ErrorCode::NotFound => self.source_forgot(app, &agent, record, error.message).await,
                // It may have begun all the same; the question is repeated.
                ErrorCode::Unavailable => self.source_silent(app, record, error.message).await,
                _ if names_target(app, record).await? => Ok(Event::RecordNamesTarget),
                _ => Ok(Event::SourceRefused(error.message)),
            },
            Err(error) => self.source_silent(app, record, error.to_string()).await,
        }
    }

    /// The operator cancelled while it is not known whether the source has been asked.
    async fn withdraw(&mut self, app: &App, record: &MoveRecord) -> Result<Event, ApiError> {
        let Operation { id, machine, source, .. } = &record.operation;
        let agent = match app.agent(source) {
            Ok(agent) => agent,
            Err(error) => return self.source_silent(app, record, error.message).await,
        };
        match agent.cancel(machine, id).await {
            Ok(()) => Ok(Event::Launched),
            Err(error) => match error.code() {
                Some(ErrorCode::NotFound) => Ok(Event::Cancelled),
                Some(ErrorCode::Unavailable) | None => self.source_silent(app, record, error.to_string()).await,
                Some(_) => Ok(Event::Launched),
            },
        }
    }

    async fn poll(&mut self, app: &App, record: &MoveRecord) -> Result<Event, ApiError> {
        let Operation { id, machine, source, .. } = &record.operation;
        let agent = match app.agent(source) {
            Ok(agent) => agent,
            Err(error) => return self.source_silent(app, record, error.message).await,
        };
        self.polls = self.polls.wrapping_add(1);
        let look = self.polls.is_multiple_of(LOOK_EVERY);
        if record.cancel && look {
            // Asked before, and perhaps not heard; "too late" and "over" show in the report.
            drop(timeout(REPORT_WITHIN, agent.cancel(machine, id)).await);
        }
        match timeout(REPORT_WITHIN, agent.move_report(machine, id)).await {
            Ok(Ok(report)) => match tell(app, record, report) {
                Some(summary) => Ok(summary),
                None if look || self.missed > 0 => self.look_at_source(app, &agent, record).await,
                None => Ok(Event::GoingOn),
            },
            Ok(Err(ClientError::Answered(error))) if error.code == ErrorCode::NotFound => {
                self.source_forgot(app, &agent, record, error.message).await
            }
            Ok(Err(error)) => self.source_silent(app, record, error.to_string()).await,
            Err(_) => {
                let reason = format!("Host {source} has not answered for {} s", REPORT_WITHIN.as_secs());
                self.source_silent(app, record, reason).await
            }
        }
    }

    /// The move goes on as far as the source's agent knows: does its machine's process live?
    async fn look_at_source(&mut self, app: &App, agent: &AgentClient, record: &MoveRecord) -> Result<Event, ApiError> {
        match process(agent, record).await {
            Some(Process::Dead(reason)) => self.source_process_dead(app, record, reason).await,
            Some(Process::Alive) | None => {
                self.missed = 0;
                Ok(Event::GoingOn)
            }
        }
    }

    async fn source_process_dead(&mut self, app: &App, record: &MoveRecord, reason: String) -> Result<Event, ApiError> {
        self.missed += 1;
        if self.missed < SURE_AFTER {
            return Ok(Event::GoingOn);
        }
        if names_target(app, record).await? {
            return Ok(Event::RecordNamesTarget);
        }
        Ok(Event::SourceForgot { alive: false, reason })
    }

    /// The source's agent answers, and knows no such move.
    async fn source_forgot(
        &mut self,
        app: &App,
        agent: &AgentClient,
        record: &MoveRecord,
        said: String,
    ) -> Result<Event, ApiError> {
        match process(agent, record).await {
            Some(Process::Dead(reason)) => self.source_process_dead(app, record, reason).await,
            Some(Process::Alive) => {
                self.missed += 1;
                if self.missed < SURE_AFTER {
                    return Ok(Event::GoingOn);
                }
                if names_target(app, record).await? {
                    return Ok(Event::RecordNamesTarget);
                }
                let reason = format!("{} does not know the move any more: {said}", record.operation.source);
                Ok(Event::SourceForgot { alive: true, reason })
            }
            None => self.source_silent(app, record, said).await,
        }
    }

    /// Only the record can tell; as long as it names the source, the machine may run there.
    async fn source_silent(&mut self, app: &App, record: &MoveRecord, reason: String) -> Result<Event, ApiError> {
        if names_target(app, record).await? {
            // Its report is worth a short wait.
            self.named += 1;
            if self.named >= SURE_AFTER {
                return Ok(Event::RecordNamesTarget);
            }
        }
        Ok(Event::SourceSilent(reason))
    }

    /// Once the target has let go, the record cannot come to name it any more; so it is read after that.
    async fn release_target(&mut self, app: &App, record: &MoveRecord) -> Result<Event, ApiError> {
        let Operation { id, machine, target, .. } = &record.operation;
        let answer = match app.agent(target) {
            Ok(agent) => agent.cancel(machine, id).await,
            Err(error) => return Ok(self.target_silent(error.message)),
        };
        if names_target(app, record).await? {
            return Ok(Event::RecordNamesTarget);
        }
        Ok(match answer {
            Ok(()) => Event::TargetLetGo,
            Err(error) => match error.code() {
                Some(ErrorCode::NotFound) => Event::TargetLetGo,
                Some(ErrorCode::Conflict) => Event::TargetCommitting(error.to_string()),
                Some(_) | None => self.target_silent(error.to_string()),
            },
        })
    }
}

/// The source has nothing more to say, and the machine is the target's: does it run there, all of it? Who does not answer is believed
/// to be what the record says.
async fn ask_new_owner(app: &App, record: &MoveRecord) -> Event {
    let Operation { id, machine, target, .. } = &record.operation;
    let Ok(agent) = app.agent(target) else { return Event::RecordNamesTarget };
    match timeout(REPORT_WITHIN, agent.machine(machine)).await {
        Ok(Ok(status)) if status.state == MachineState::Failed => {
            Event::Stranded(status.reason.unwrap_or_else(|| format!("it failed on {target}")))
        }
        Ok(Ok(status)) if status.move_id.as_ref() == Some(id) => Event::TargetCommitting(format!(
            "Machine {machine} is {target}'s; it has not said yet that all of it is there"
        )),
        _ => Event::RecordNamesTarget,
    }
}

enum Process {
    Alive,
    Dead(String),
}

/// Does the machine's process live at the source? `None` when the agent does not say.
async fn process(agent: &AgentClient, record: &MoveRecord) -> Option<Process> {
    let Operation { machine, source, .. } = &record.operation;
    let dead = |state: &str, reason: Option<String>| {
        let reason = reason.map(|reason| format!(": {reason}")).unwrap_or_default();
        Process::Dead(format!("Machine {machine} {state} on {source} during the move{reason}"))
    };
    match timeout(REPORT_WITHIN, agent.machine(machine)).await {
        Ok(Ok(status)) => Some(match status.state {
            MachineState::Failed => dead("failed", status.reason),
            MachineState::Stopped => dead("stopped", status.reason),
            _ => Process::Alive,
        }),
        Ok(Err(error)) if error.code() == Some(ErrorCode::NotFound) => Some(dead("is not known any more", None)),
        Ok(Err(_)) | Err(_) => None,
    }
}

async fn names_target(app: &App, record: &MoveRecord) -> Result<bool, ApiError> {
    let owner = load_owner(&*app.store, &record.operation.machine).await?;
    Ok(owner.is_some_and(|owner| record.decided_by(&owner.value)))
}

/// Shows a report's progress; its summary is an event.
fn tell(app: &App, record: &MoveRecord, report: MoveReport) -> Option<Event> {
    let MoveReport { progress, summary } = report;
    if progress.is_some() {
        show(app, &record.operation.id, |operation| {
            operation.progress = progress;
            operation.note = None;
        });
    }
    summary.map(|summary| Event::Summary(Box::new(summary)))
}
