//! Errors for people and scripts: one readable chain, a hint where we have one, and an exit code by kind.

use std::process::ExitCode;
use vmotion_api::ClientError;
use vmotion_model::{ApiError, ErrorCode};

/// Prints `error` to standard error (as JSON when asked) and gives the exit code for it.
pub(crate) fn report(error: &anyhow::Error, json: bool) -> ExitCode {
    let api = as_api_error(error);
    if json {
        let text = serde_json::to_string(&api).unwrap_or_else(|_| "{}".to_owned());
        eprintln!("{text}");
    } else {
        eprintln!("error: {}", api.message);
        if let Some(hint) = &api.hint {
            eprintln!("hint: {hint}");
        }
    }
    ExitCode::from(api.code.exit_code())
}

fn as_api_error(error: &anyhow::Error) -> ApiError {
    if let Some(api) = error.downcast_ref::<ApiError>() {
        return api.clone();
    }
    if let Some(client) = error.downcast_ref::<ClientError>() {
        let api = client.clone().into_api_error();
        return match client {
            ClientError::NoAnswer { .. } => {
                api.with_hint("is it running? --controller and --identity (or VMOTION_CONTROLLER, VMOTION_IDENTITY) say where and as whom")
            }
            ClientError::Answered(_) => api,
        };
    }
    ApiError::new(ErrorCode::Internal, format!("{error:#}"))
}
