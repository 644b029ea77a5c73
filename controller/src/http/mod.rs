//! The HTTP API: one file for each resource, one table of routes, and who may call what.

mod access;
mod audit;
mod console;
mod hosts;
mod machines;
mod metrics;
mod moves;
pub(crate) mod openapi;
mod owners;
mod policy;

use crate::app::App;
use axum::{
    Router,
    extract::DefaultBodyLimit,
    middleware,
    routing::{MethodRouter, get, post},
};
use std::sync::Arc;
use vmotion_api::Problem;
use vmotion_model::{ApiError, ErrorCode};

/// Largest request body.
const BODY_BYTES_MAX: usize = 1 << 20;

/// A path, the methods it has, and their handlers.
type Route = (&'static str, &'static [&'static str], MethodRouter<Arc<App>>);

/// Every route.
fn routes() -> Vec<Route> {
    vec![
        ("/v1/machines", &["get", "post"], get(machines::list).post(machines::create)),
        ("/v1/machines/{name}", &["get", "delete"], get(machines::show).delete(machines::remove)),
        ("/v1/machines/{name}/stop", &["post"], post(machines::stop)),
        ("/v1/machines/{name}/snapshot", &["post"], post(machines::snapshot)),
        ("/v1/machines/{name}/shape", &["get", "post"], get(machines::shape).post(machines::reshape)),
        ("/v1/machines/{name}/claims", &["post"], post(machines::claim)),
        ("/v1/machines/{name}/console", &["get", "post"], get(console::read).post(console::write)),
        ("/v1/owners/{name}", &["get"], get(owners::show)),
        ("/v1/owners/{name}/cas", &["post"], post(owners::compare_and_set)),
        ("/v1/hosts", &["get"], get(hosts::list)),
        ("/v1/hosts/{name}/heartbeat", &["post"], post(hosts::heartbeat)),
        ("/v1/hosts/{name}/cordon", &["post"], post(hosts::cordon)),
        ("/v1/hosts/{name}/uncordon", &["post"], post(hosts::uncordon)),
        ("/v1/hosts/{name}/drain", &["post"], post(policy::drain)),
        ("/v1/machines/{name}/why", &["get"], get(policy::why)),
        ("/v1/site", &["get", "put"], get(policy::site).put(policy::apply)),
        ("/v1/policy", &["get", "patch"], get(policy::show).patch(policy::set)),
        ("/v1/rebalance", &["post"], post(policy::rebalance)),
        ("/v1/what-if", &["post"], post(policy::what_if)),
        ("/v1/plans", &["get"], get(policy::plans)),
        ("/v1/plans/{id}", &["get", "delete"], get(policy::plan).delete(policy::cancel)),
        ("/v1/plans/{id}/undo", &["post"], post(policy::undo)),
        ("/v1/usage", &["get"], get(policy::usage)),
        ("/v1/moves", &["get", "post"], get(moves::list).post(moves::start)),
        ("/v1/moves/accuracy", &["get"], get(moves::accuracy)),
        ("/v1/moves/{id}", &["get", "patch", "delete"], get(moves::show).patch(moves::limit).delete(moves::cancel)),
        ("/v1/moves/{id}/events", &["get"], get(moves::events)),
        ("/metrics", &["get"], get(metrics::read)),
        ("/v1/audit", &["get"], get(audit::read)),
        ("/v1/openapi.json", &["get"], get(openapi::document)),
    ]
}

/// The whole API.
pub(crate) fn router(app: Arc<App>) -> Router {
    let add = |router: Router<Arc<App>>, (path, _, handlers): Route| router.route(path, handlers);
    routes()
        .into_iter()
        .fold(Router::new(), add)
        .fallback(no_such_path)
        .method_not_allowed_fallback(no_such_method)
        .layer(DefaultBodyLimit::max(BODY_BYTES_MAX))
        .layer(middleware::from_fn_with_state(Arc::clone(&app), audit::record))
        .layer(middleware::from_fn_with_state(Arc::clone(&app), crate::metrics::count))
        .layer(middleware::from_fn(vmotion_api::adopt_trace))
        .with_state(app)
}

async fn no_such_path(uri: axum::http::Uri) -> Problem {
    let error = ApiError::new(ErrorCode::NotFound, format!("There is nothing at {}", uri.path()));
    Problem(error.with_hint("GET /v1/openapi.json lists what there is"))
}

async fn no_such_method(method: axum::http::Method, uri: axum::http::Uri) -> Problem {
    Problem(ApiError::new(ErrorCode::Invalid, format!("{method} is not possible at {}", uri.path())))
}

/// Runs what must not stop half-way when the caller hangs up.
async fn to_the_end<T: Send + 'static>(
    work: impl Future<Output = Result<T, ApiError>> + Send + 'static,
) -> Result<T, Problem> {
    match vmotion_api::spawn_traced(work).await {
        Ok(answer) => answer.map_err(Problem),
        Err(error) => {
            Err(Problem(ApiError::new(ErrorCode::Internal, format!("The request was not finished: {error}"))))
        }
    }
}
