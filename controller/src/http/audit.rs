//! `/v1/audit`, and what writes it: an order is in the log before it is obeyed, and how it was answered afterwards.

use super::{BODY_BYTES_MAX, access::Admin};
use crate::{
    app::App,
    audit::{self, Act},
    error::invalid,
};
use axum::{
    body::{Body, Bytes, to_bytes},
    extract::{ConnectInfo, MatchedPath, Query, Request, State, rejection::QueryRejection},
    http::{Method, StatusCode},
    middleware::Next,
    response::{IntoResponse as _, Response},
};
use serde::Deserialize;
use std::sync::Arc;
use vmotion_api::{AuditEvent, AuditPage, Caller, Json, Problem, spawn_traced};
use vmotion_model::{ApiError, ErrorCode};
use vmotion_transport::Principal;

/// As much of a request as an entry holds, in bytes.
const REQUEST_BYTES_MAX: usize = 4096;
/// Longest error that is looked into, in bytes.
const ERROR_BYTES_MAX: usize = 64 << 10;
/// Longest path that an entry holds, in bytes: one that was refused can be anything.
const PATH_BYTES_MAX: usize = 256;

/// Which entries are wanted.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Wanted {
    from: Option<u64>,
}

/// Entries of the audit log, as many as an answer holds
#[utoipa::path(get, path = "/v1/audit", tag = "audit",
    params(("from" = Option<u64>, Query, description = "Number of the first wanted; without it, only the last")),
    responses((status = 200, description = "Entries in order", body = AuditPage), (status = "default", description = "What went wrong", body = ApiError)))]
pub(super) async fn read(
    _: Admin,
    State(app): State<Arc<App>>,
    query: Result<Query<Wanted>, QueryRejection>,
) -> Result<Json<AuditPage>, Problem> {
    let Query(Wanted { from }) = query.map_err(|error| invalid(error.body_text()))?;
    Ok(Json(audit::read(&*app.store, from).await?))
}

/// Writes down who orders what, and what came of it.
pub(super) async fn record(State(app): State<Arc<App>>, request: Request, next: Next) -> Response {
    let caller = request.extensions().get::<ConnectInfo<Caller>>().map(|ConnectInfo(caller)| caller.clone());
    let (method, path) = (request.method().clone(), shortened(request.uri().path(), PATH_BYTES_MAX));
    // By route: whoever asks for ever other names is one who asks all the time.
    let route = request.extensions().get::<MatchedPath>().map_or("other", MatchedPath::as_str).to_owned();
    let who = Who::of(caller.as_ref());
    if !is_order(&method, &path, caller.as_ref()) {
        let response = next.run(request).await;
        if response.status() == StatusCode::FORBIDDEN && app.audit.is_news(&who.caller, &route) {
            write_later(&app, who.act(AuditEvent::Denied { method: method.to_string(), path })).await;
        }
        return response;
    }
    if path.ends_with("/console") {
        // What is typed is nobody's business, and comes in many small pieces.
        if app.audit.is_news(&who.caller, &path) {
            let event = AuditEvent::Asked { method: method.to_string(), path, request: String::new() };
            if let Err(error) = app.audit.write(&*app.store, who.act(event)).await {
                return Problem(audit::unwritten(&error)).into_response();
            }
        }
        return next.run(request).await;
    }
    let (head, body) = request.into_parts();
    let Ok(body) = to_bytes(body, BODY_BYTES_MAX).await else {
        return Problem(invalid(format!("The request's body is longer than {BODY_BYTES_MAX} bytes"))).into_response();
    };
    let text = String::from_utf8_lossy(&body).into_owned();
    let request = Request::from_parts(head, Body::from(body));
    if changes_nothing(&text) {
        return next.run(request).await;
    }
    let event = AuditEvent::Asked { method: method.to_string(), path, request: shortened(&text, REQUEST_BYTES_MAX) };
    let to = match app.audit.write(&*app.store, who.act(event)).await {
        Ok(number) => number,
        Err(error) => return Problem(audit::unwritten(&error)).into_response(),
    };
    // To its end, whether or not the caller waits for it: every order has an answer.
    let answered = spawn_traced(async move {
        let (response, message) = look_into(next.run(request).await).await;
        let event = AuditEvent::Answered { to, status: response.status().as_u16(), message };
        write_later(&app, who.act(event)).await;
        response
    });
    answered.await.unwrap_or_else(|error| {
        Problem(ApiError::new(ErrorCode::Internal, format!("The request was not finished: {error}"))).into_response()
    })
}

/// Writes down what has happened already.
async fn write_later(app: &App, act: Act) {
    if let Err(error) = app.audit.write(&*app.store, act.clone()).await {
        app.metrics.not_audited();
        tracing::error!(%error, ?act, "the audit log cannot be written");
    }
}

/// Who asks.
#[derive(Debug, Clone)]
struct Who {
    caller: String,
    address: Option<String>,
}

impl Who {
    fn of(caller: Option<&Caller>) -> Self {
        let principal = caller.and_then(|caller| caller.principal.as_ref());
        Self {
            caller: principal.map_or_else(|| "nobody known".to_owned(), Principal::to_string),
            address: caller.map(|caller| caller.address.to_string()),
        }
    }

    fn act(&self, event: AuditEvent) -> Act {
        Act { caller: self.caller.clone(), address: self.address.clone(), event }
    }
}

/// Does it ask for a change? What hosts say of themselves is no order, and must not wait for a log.
fn is_order(method: &Method, path: &str, caller: Option<&Caller>) -> bool {
    let by_host = matches!(caller.and_then(|caller| caller.principal.as_ref()), Some(Principal::Host(_)) | None);
    !(by_host || matches!(*method, Method::GET | Method::HEAD | Method::OPTIONS) || path == "/v1/what-if")
}

/// Does it say that it only wants to know?
fn changes_nothing(body: &str) -> bool {
    #[derive(Deserialize)]
    struct Rehearsal {
        #[serde(default)]
        dry_run: bool,
    }
    serde_json::from_str(body).is_ok_and(|rehearsal: Rehearsal| rehearsal.dry_run)
}

/// What went wrong, in words, if anything.
async fn look_into(response: Response) -> (Response, Option<String>) {
    if response.status().is_success() {
        return (response, None);
    }
    let (head, body) = response.into_parts();
    let body = to_bytes(body, ERROR_BYTES_MAX).await.unwrap_or_else(|_| Bytes::new());
    let message = serde_json::from_slice::<ApiError>(&body).ok().map(|error| error.message);
    (Response::from_parts(head, Body::from(body)), message)
}

fn shortened(text: &str, most: usize) -> String {
    if text.len() <= most {
        return text.to_owned();
    }
    let end = (0..=most).rev().find(|at| text.is_char_boundary(*at)).unwrap_or(0);
    format!("{}… ({} bytes)", &text[..end], text.len())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_texts_are_cut_between_letters_and_say_how_long_they_were() {
        assert_eq!(shortened("abc", 3), "abc");
        assert_eq!(shortened("äöü", 3), "ä… (6 bytes)");
    }

    #[test]
    fn a_rehearsal_is_known_by_its_word_alone() {
        assert!(changes_nothing(r#"{"dry_run":true,"machine":"a"}"#));
        for order in [r#"{"dry_run":false}"#, r#"{"machine":"dry_run"}"#, "", "null", "[1]", r#"{"dry_run":"true"}"#] {
            assert!(!changes_nothing(order), "{order}");
        }
    }
}
