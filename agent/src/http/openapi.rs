//! `/v1/openapi.json`: the API described by the handlers themselves.

use axum::response::{IntoResponse as _, Response};
use utoipa::OpenApi as _;

/// The API of an agent.
#[derive(utoipa::OpenApi)]
#[openapi(
    info(
        title = "vmotion agent",
        description = "The machines of one host. Every connection shows the client certificate of a controller or operator."
    ),
    paths(
        super::host,
        super::machines,
        super::machine,
        super::start,
        super::remove,
        super::stop,
        super::snapshot,
        super::part,
        super::part_state,
        super::order,
        super::incoming,
        super::outgoing,
        super::report,
        super::limit,
        super::cancel,
        super::console_output,
        super::console_input,
        document,
    )
)]
struct Document;

/// This document
#[utoipa::path(get, path = "/v1/openapi.json", tag = "about", responses((status = 200, description = "OpenAPI 3.1")))]
pub(super) async fn document() -> Response {
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
