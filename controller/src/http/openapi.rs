//! `/v1/openapi.json`: the API described by the handlers themselves.

use super::{access::Anybody, audit, console, hosts, machines, metrics, moves, owners, policy};
use axum::response::{IntoResponse as _, Response};
use utoipa::OpenApi as _;

/// The API of the controller.
#[derive(utoipa::OpenApi)]
#[openapi(
    info(
        title = "vmotion controller",
        description = "Machines, hosts and moves. Every connection shows a client certificate."
    ),
    paths(
        machines::list,
        machines::show,
        machines::create,
        machines::stop,
        machines::remove,
        machines::snapshot,
        machines::shape,
        machines::reshape,
        machines::claim,
        console::read,
        console::write,
        owners::show,
        owners::compare_and_set,
        hosts::list,
        hosts::heartbeat,
        hosts::cordon,
        hosts::uncordon,
        policy::drain,
        policy::why,
        policy::what_if,
        policy::site,
        policy::apply,
        policy::show,
        policy::set,
        policy::rebalance,
        policy::plans,
        policy::undo,
        policy::plan,
        policy::cancel,
        policy::usage,
        moves::list,
        moves::show,
        moves::start,
        moves::limit,
        moves::accuracy,
        moves::cancel,
        moves::events,
        audit::read,
        metrics::read,
        document,
    ),
    components(schemas(vmotion_model::Placement, vmotion_model::Plan))
)]
struct Document;

/// This document
#[utoipa::path(get, path = "/v1/openapi.json", tag = "about", responses((status = 200, description = "OpenAPI 3.1")))]
pub(super) async fn document(_: Anybody) -> Response {
    axum::Json(Document::openapi()).into_response()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn every_route_is_documented_and_every_documented_path_is_a_route() {
        let document = serde_json::to_value(Document::openapi()).unwrap();
        let paths = document["paths"].as_object().unwrap();
        let documented: BTreeSet<(String, String)> = paths
            .iter()
            .flat_map(|(path, item)| {
                let methods = item.as_object().unwrap().keys();
                methods.map(|method| (path.clone(), method.clone())).collect::<Vec<_>>()
            })
            .collect();
        let served: BTreeSet<(String, String)> = crate::http::routes()
            .iter()
            .flat_map(|(path, methods, _)| methods.iter().map(|method| ((*path).to_owned(), (*method).to_owned())))
            .collect();
        assert_eq!(documented, served);
    }

    #[test]
    fn every_reference_in_the_document_resolves() {
        let document = serde_json::to_value(Document::openapi()).unwrap();
        let text = document.to_string();
        for reference in text.split("\"$ref\":\"#").skip(1).map(|rest| rest.split('"').next().unwrap()) {
            assert!(document.pointer(reference).is_some(), "{reference} is nowhere");
        }
    }
}
