//! What a monitoring system reads: `GET /metrics`, in the OpenMetrics text format, with Prometheus's conventions for names.
//!
//! Counters are of this term of this controller, and begin at 0 with it. Everything else is read when it is asked for, from the same places
//! as the answers to operators. The one invariant: no label is made of what a caller sends, so that nobody can make series without end.

use crate::{
    app::{App, lock},
    drains,
    machines::{self, in_words},
    plans,
    store::{Entry, Outcome, Revision, SharedStore, Store, StoreError, Transaction, Watch, WatchError},
};
use axum::{
    extract::{MatchedPath, Request, State},
    http::header::CONTENT_TYPE,
    middleware::Next,
    response::{IntoResponse as _, Response},
};
use futures::future::BoxFuture;
use prometheus_client::{
    encoding::text::encode,
    metrics::{
        counter::{ConstCounter, Counter},
        family::Family,
        gauge::Gauge,
        histogram::{Histogram, exponential_buckets},
        info::Info,
    },
    registry::{Registry, Unit},
};
use std::{
    collections::BTreeMap,
    fmt,
    sync::{Arc, atomic::AtomicU64},
    time::{Duration, Instant},
};
use vmotion_api::Operation;
use vmotion_model::{ApiError, HostState, MachineState, MoveOutcome};

/// The answer's type, with the version that the encoder writes.
pub(crate) const CONTENT: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";
const PREFIX: &str = "vmotion";

type Labels = Vec<(&'static str, String)>;
type Counts = Family<Labels, Counter>;
type Times = Family<Labels, Histogram>;
type Figures = Family<Labels, Gauge<f64, AtomicU64>>;

/// What is counted as it happens.
pub(crate) struct Metrics {
    registry: Registry,
    requests: Counts,
    request_seconds: Times,
    commits: Counts,
    commit_seconds: Histogram,
    moves: Counts,
    move_seconds: Times,
    downtime_seconds: Histogram,
    wire_bytes: Counter,
    plans: Counts,
    think_seconds: Histogram,
    unaudited: Counter,
}

impl fmt::Debug for Metrics {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Metrics")
    }
}

fn seconds(from: f64, count: u16) -> Histogram {
    Histogram::new(exponential_buckets(from, 2.0, count))
}

impl Metrics {
    pub(crate) fn new() -> Arc<Self> {
        let mut metrics = Self {
            registry: Registry::with_prefix(PREFIX),
            requests: Counts::default(),
            request_seconds: Times::new_with_constructor(|| seconds(0.001, 14)),
            commits: Counts::default(),
            commit_seconds: seconds(0.0005, 14),
            moves: Counts::default(),
            move_seconds: Times::new_with_constructor(|| seconds(0.25, 16)),
            downtime_seconds: seconds(0.001, 16),
            wire_bytes: Counter::default(),
            plans: Counts::default(),
            think_seconds: seconds(0.001, 16),
            unaudited: Counter::default(),
        };
        let Self { registry, requests, request_seconds, commits, commit_seconds, moves, move_seconds, .. } =
            &mut metrics;
        registry.register("http_requests", "Requests answered", requests.clone());
        registry.register_with_unit("http_request", "Time to answer", Unit::Seconds, request_seconds.clone());
        registry.register("store_commits", "Transactions of the store", commits.clone());
        registry.register_with_unit("store_commit", "Time of a transaction", Unit::Seconds, commit_seconds.clone());
        registry.register("moves", "Moves that ended", moves.clone());
        registry.register_with_unit("move", "Time from request to end of a move", Unit::Seconds, move_seconds.clone());
        let Self { registry, downtime_seconds, wire_bytes, plans, think_seconds, unaudited, .. } = &mut metrics;
        let help = "Time a moved machine stood still, by its source";
        registry.register_with_unit("move_downtime", help, Unit::Seconds, downtime_seconds.clone());
        registry.register_with_unit("move_wire", "Sent by moves that ended", Unit::Bytes, wire_bytes.clone());
        registry.register("plans", "Plans begun", plans.clone());
        registry.register_with_unit("policy_think", "Time to make a plan", Unit::Seconds, think_seconds.clone());
        registry.register(
            "audit_failures",
            "What was done and could not be written to the audit log",
            unaudited.clone(),
        );
        Arc::new(metrics)
    }

    pub(crate) fn move_ended(&self, operation: &Operation) {
        let Some(outcome) = &operation.outcome else { return };
        let labels = vec![("outcome", word(outcome).to_owned()), ("asked_by", asker(operation.asked_by.as_deref()))];
        self.moves.get_or_create(&labels).inc();
        let Some(summary) = &operation.summary else { return };
        let seconds = self.move_seconds.get_or_create(&vec![("outcome", word(outcome).to_owned())]);
        seconds.observe(summary.total_ms / 1000.0);
        if *outcome == MoveOutcome::Moved {
            self.downtime_seconds.observe(summary.downtime.source_ms / 1000.0);
        }
        self.wire_bytes.inc_by(summary.wire_bytes);
    }

    pub(crate) fn plan_begun(&self, goal: &'static str, asked_by: &str) {
        self.plans.get_or_create(&vec![("goal", goal.to_owned()), ("asked_by", asker(Some(asked_by)))]).inc();
    }

    pub(crate) fn thought(&self, time: Duration) {
        self.think_seconds.observe(time.as_secs_f64());
    }

    pub(crate) fn not_audited(&self) {
        self.unaudited.inc();
    }
}

/// Operators by their kind only.
fn asker(name: Option<&str>) -> String {
    let policy = name == Some(crate::placed::POLICY_NAME);
    if policy { "policy" } else { "operator" }.to_owned()
}

const fn word(outcome: &MoveOutcome) -> &'static str {
    match outcome {
        MoveOutcome::Moved => "moved",
        MoveOutcome::Cancelled => "cancelled",
        MoveOutcome::Surveyed => "surveyed",
        MoveOutcome::RolledBack { .. } => "rolled-back",
        MoveOutcome::Partly { .. } => "partly",
        MoveOutcome::SourceLost { .. } => "source-lost",
        MoveOutcome::Stranded { .. } => "stranded",
    }
}

/// Counts requests by route, and times them. Streams count when their answer begins.
pub(crate) async fn count(State(app): State<Arc<App>>, request: Request, next: Next) -> Response {
    let route = request.extensions().get::<MatchedPath>().map_or("other", MatchedPath::as_str).to_owned();
    let method = match request.method().as_str() {
        known @ ("GET" | "POST" | "PUT" | "PATCH" | "DELETE") => known.to_owned(),
        _ => "other".to_owned(),
    };
    let begun = Instant::now();
    let response = next.run(request).await;
    let status = response.status().as_u16().to_string();
    app.metrics.request_seconds.get_or_create(&vec![("route", route.clone())]).observe(begun.elapsed().as_secs_f64());
    app.metrics.requests.get_or_create(&vec![("method", method), ("route", route), ("status", status)]).inc();
    response
}

/// A store that is timed.
pub(crate) struct Timed {
    store: SharedStore,
    metrics: Arc<Metrics>,
}

impl Timed {
    pub(crate) fn new(store: SharedStore, metrics: Arc<Metrics>) -> Self {
        Self { store, metrics }
    }
}

impl Store for Timed {
    fn get<'a>(&'a self, key: &'a str) -> BoxFuture<'a, Result<Option<Entry>, StoreError>> {
        self.store.get(key)
    }

    fn list<'a>(&'a self, prefix: &'a str) -> BoxFuture<'a, Result<(Vec<Entry>, Revision), StoreError>> {
        self.store.list(prefix)
    }

    fn commit(&self, transaction: Transaction) -> BoxFuture<'_, Result<Outcome, StoreError>> {
        Box::pin(async move {
            let begun = Instant::now();
            let outcome = self.store.commit(transaction).await;
            self.metrics.commit_seconds.observe(begun.elapsed().as_secs_f64());
            let word = match &outcome {
                Ok(Outcome::Committed(_)) => "committed",
                Ok(Outcome::Refused) => "refused",
                Err(_) => "failed",
            };
            self.metrics.commits.get_or_create(&vec![("outcome", word.to_owned())]).inc();
            outcome
        })
    }

    fn watch(&self, prefix: &str, after: Revision) -> Result<Watch, WatchError> {
        self.store.watch(prefix, after)
    }
}

/// All of it, as text.
pub(crate) async fn text(app: &App) -> Result<String, ApiError> {
    let mut now = Registry::with_prefix(PREFIX);
    let version = Info::new(vec![("version", env!("CARGO_PKG_VERSION"))]);
    now.register("build", "The controller's version", version);
    let leads = Gauge::<i64>::default();
    leads.set(1);
    now.register("controller_leads", "Whether the controller that answers leads", leads);
    hosts(app, &mut now).await?;
    machines_of(app, &mut now).await?;
    usage(app, &mut now);
    let running = Gauge::<i64>::default();
    running.set(i64::try_from(lock(&app.live).len()).unwrap_or(i64::MAX));
    now.register("moves_running", "Moves that are under way", running);
    let carried_out = Gauge::<i64>::default();
    carried_out.set(i64::try_from(plans::running(app).await?.len()).unwrap_or(i64::MAX));
    now.register("plans_running", "Plans that are carried out", carried_out);
    let entries = ConstCounter::new(crate::audit::read(&*app.store, None).await?.last.number);
    now.register("audit_entries", "Entries ever written to the audit log", entries);
    let mut out = String::new();
    encode(&mut out, &app.metrics.registry)
        .and_then(|()| {
            // One end for both parts.
            out.truncate(out.trim_end().trim_end_matches("# EOF").len());
            encode(&mut out, &now)
        })
        .map_err(|error| {
            ApiError::new(vmotion_model::ErrorCode::Internal, format!("The metrics cannot be written: {error}"))
        })?;
    Ok(out)
}

fn figures(registry: &mut Registry, name: &str, help: &str, unit: Option<Unit>) -> Figures {
    let family = Figures::default();
    match unit {
        Some(unit) => registry.register_with_unit(name, help, unit, family.clone()),
        None => registry.register(name, help, family.clone()),
    }
    family
}

#[expect(clippy::cast_precision_loss, reason = "bytes and ms, as Prometheus has them")]
async fn hosts(app: &App, registry: &mut Registry) -> Result<(), ApiError> {
    let draining = drains::hosts(app).await?;
    let up = figures(registry, "host_up", "Whether heartbeats of the host arrive", None);
    let closed = figures(registry, "host_cordoned", "Whether nothing new may come to the host", None);
    let emptied = figures(registry, "host_draining", "Whether the host is to be emptied", None);
    let age = figures(registry, "host_heartbeat_age", "Since the last heartbeat", Some(Unit::Seconds));
    let memory = figures(registry, "host_memory", "Memory for machines", Some(Unit::Bytes));
    let used = figures(registry, "host_memory_used", "Memory given to machines", Some(Unit::Bytes));
    for host in app.inventory.hosts() {
        let labels = vec![("host", host.name.to_string()), ("datacenter", host.datacenter.to_string())];
        let is = |holds: bool| f64::from(u8::from(holds));
        up.get_or_create(&labels).set(is(host.state == HostState::Up));
        closed.get_or_create(&labels).set(is(host.cordoned));
        emptied.get_or_create(&labels).set(is(draining.contains(&host.name)));
        age.get_or_create(&labels).set(host.seen_ms_ago as f64 / 1000.0);
        memory.get_or_create(&labels).set(host.capacity.memory.0 as f64);
        used.get_or_create(&labels).set(host.capacity.memory_used.0 as f64);
    }
    Ok(())
}

async fn machines_of(app: &App, registry: &mut Registry) -> Result<(), ApiError> {
    let family = figures(registry, "machines", "Machines by what they do", None);
    let mut counts: BTreeMap<&str, f64> = ALL_STATES.into_iter().map(|state| (in_words(state), 0.0)).collect();
    for machine in machines::list(app).await? {
        *counts.entry(in_words(machine.state)).or_default() += 1.0;
    }
    for (state, count) in counts {
        family.get_or_create(&vec![("state", state.to_owned())]).set(count);
    }
    Ok(())
}

const ALL_STATES: [MachineState; 8] = [
    MachineState::Starting,
    MachineState::Running,
    MachineState::Moving,
    MachineState::Incoming,
    MachineState::Paused,
    MachineState::Stopped,
    MachineState::Failed,
    MachineState::Unknown,
];

/// What agents measured last. Who has not said it has no sample.
fn usage(app: &App, registry: &mut Registry) {
    let cpus = figures(registry, "host_cpus", "Processors that machines may use", None);
    let busy = figures(registry, "host_cpus_busy", "Processors that are busy", None);
    let pressure = figures(
        registry,
        "host_pressure",
        "Part of the time somebody waited for it (PSI some, 10 s)",
        Some(Unit::Ratios),
    );
    let received =
        figures(registry, "host_network_received_bytes_per_second", "Received over the host's networks", None);
    let sent = figures(registry, "host_network_sent_bytes_per_second", "Sent over the host's networks", None);
    let machine_cpus = figures(registry, "machine_cpus_busy", "Processors that a machine's process is busy on", None);
    let waited = figures(registry, "machine_cpus_waited", "Processors that it was ready for and did not get", None);
    let dirty = figures(registry, "machine_dirty_pages_per_second", "Different pages written", None);
    let working = figures(registry, "machine_working_set_pages", "Different pages written in half a minute", None);
    for host in app.telemetry.all() {
        let labels = vec![("host", host.host.to_string())];
        if let Some(telemetry) = host.telemetry {
            cpus.get_or_create(&labels).set(f64::from(telemetry.cpus));
            busy.get_or_create(&labels).set(f64::from(telemetry.cpus_busy));
            received.get_or_create(&labels).set(telemetry.received_bytes_per_s);
            sent.get_or_create(&labels).set(telemetry.sent_bytes_per_s);
            for (resource, percent) in telemetry.pressure.into_iter().flat_map(|pressure| {
                [("cpu", pressure.cpu_percent), ("memory", pressure.memory_percent), ("io", pressure.io_percent)]
            }) {
                let labels = vec![("host", host.host.to_string()), ("resource", resource.to_owned())];
                pressure.get_or_create(&labels).set(f64::from(percent) / 100.0);
            }
        }
        for machine in host.machines {
            let labels = vec![("machine", machine.machine.to_string()), ("host", host.host.to_string())];
            machine_cpus.get_or_create(&labels).set(f64::from(machine.telemetry.cpus));
            waited.get_or_create(&labels).set(f64::from(machine.telemetry.cpus_waited));
            if let Some(memory) = machine.telemetry.memory {
                dirty.get_or_create(&labels).set(memory.dirty_pages_per_s);
                working.get_or_create(&labels).set(memory.working_set_pages);
            }
        }
    }
}

/// What a controller that stands by says.
pub(crate) fn standing_by() -> Response {
    let text = "# HELP vmotion_controller_leads Whether the controller that answers leads.\n\
                # TYPE vmotion_controller_leads gauge\nvmotion_controller_leads 0\n# EOF\n";
    ([(CONTENT_TYPE, CONTENT)], text).into_response()
}
