//! What answers on the controller's address: the whole API while this controller leads, and otherwise who does.
//!
//! The one invariant: a request reaches the API of one term, or none. What a standby answers says that nothing was done, and where to ask
//! instead; clients go there by themselves.

use crate::{leader::Leader, metrics};
use axum::{
    Json, Router,
    extract::{Request, State},
    http::{HeaderName, HeaderValue},
    response::{IntoResponse as _, Response},
    routing::get,
};
use serde::{Deserialize, Serialize};
use std::sync::{Arc, PoisonError, RwLock};
use tower::ServiceExt as _;
use vmotion_api::{LEADER_HEADER, Problem};
use vmotion_model::{ApiError, ErrorCode};

/// The door.
#[derive(Debug)]
pub(crate) struct Front {
    me: Leader,
    part: RwLock<Part>,
}

#[derive(Debug, Clone)]
enum Part {
    /// It answers.
    Active(Router),
    /// Another does, or nobody.
    Standby(Option<Leader>),
}

/// `GET /v1/health`: anybody with a certificate may ask, of every controller.
#[derive(Debug, Serialize, Deserialize)]
struct Health {
    /// Its name.
    name: String,
    /// Does it lead?
    leads: bool,
    /// Who does, as far as it knows.
    leader: Option<Leader>,
}

impl Front {
    /// Standby, and it is not known who leads.
    pub(crate) fn new(me: Leader) -> Arc<Self> {
        Arc::new(Self { me, part: RwLock::new(Part::Standby(None)) })
    }

    /// From now on `router` answers.
    pub(crate) fn lead(&self, router: Router) {
        *self.part.write().unwrap_or_else(PoisonError::into_inner) = Part::Active(router);
    }

    /// From now on this controller sends everybody to `leader`; nowhere, while that is what it was itself before it was started again.
    pub(crate) fn stand_by(&self, leader: Option<&Leader>) {
        let leader = leader.filter(|leader| **leader != self.me);
        *self.part.write().unwrap_or_else(PoisonError::into_inner) = Part::Standby(leader.cloned());
    }

    fn part(&self) -> Part {
        self.part.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// What is served.
    pub(crate) fn router(self: Arc<Self>) -> Router {
        Router::new().route("/v1/health", get(health)).fallback(pass_on).with_state(self)
    }
}

async fn health(State(front): State<Arc<Front>>) -> Json<Health> {
    let (leads, leader) = match front.part() {
        Part::Active(_) => (true, Some(front.me.clone())),
        Part::Standby(leader) => (false, leader),
    };
    Json(Health { name: front.me.name.clone(), leads, leader })
}

async fn pass_on(State(front): State<Arc<Front>>, request: Request) -> Response {
    match front.part() {
        Part::Active(router) => match router.oneshot(request).await {
            Ok(response) => response,
            Err(never) => match never {},
        },
        // Asked by address, not for the one that leads.
        Part::Standby(_) if request.uri().path() == "/metrics" => metrics::standing_by(),
        Part::Standby(leader) => elsewhere(&front.me, leader.as_ref()),
    }
}

/// Nothing was done; ask there.
fn elsewhere(me: &Leader, leader: Option<&Leader>) -> Response {
    let mut error = ApiError::new(
        ErrorCode::Unavailable,
        match leader {
            Some(leader) => format!("Controller {} stands by: {} leads, at {}", me.name, leader.name, leader.url),
            None => format!("Controller {} stands by, and no controller leads yet", me.name),
        },
    );
    if leader.is_some() {
        error = error.with_hint("name all controllers, with commas: --controller URL,URL,URL");
    }
    let url = leader.and_then(|leader| HeaderValue::from_str(&leader.url).ok());
    let mut response = Problem(error).into_response();
    let url = url.unwrap_or_else(|| HeaderValue::from_static(""));
    response.headers_mut().insert(HeaderName::from_static(LEADER_HEADER), url);
    response
}
