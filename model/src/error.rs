//! The one error that crosses an HTTP border: a code a script can branch on, and words a person can act on.

use serde::{Deserialize, Serialize};
use std::fmt;

/// What kind of failure; stable, part of the API.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "kebab-case")]
pub enum ErrorCode {
    /// The request is malformed or a value is out of range.
    Invalid,
    /// No such machine, host, datacenter or move.
    NotFound,
    /// It exists already, or is busy with something that excludes this.
    Conflict,
    /// The request is right, but the world does not allow it: no host fits, a feature is missing.
    Refused,
    /// Certificate or ticket not accepted.
    Forbidden,
    /// A host or process that is needed does not answer.
    Unavailable,
    /// A fault of ours or of the host.
    Internal,
}

impl ErrorCode {
    /// The exit code of the command line for this kind. 1 is "anything else", 2 is clap's usage error.
    #[must_use]
    pub const fn exit_code(self) -> u8 {
        match self {
            Self::Invalid => 2,
            Self::NotFound => 3,
            Self::Conflict => 4,
            Self::Refused => 5,
            Self::Forbidden => 6,
            Self::Unavailable => 7,
            Self::Internal => 1,
        }
    }

    /// The HTTP status for this kind.
    #[must_use]
    pub const fn http_status(self) -> u16 {
        match self {
            Self::Invalid => 400,
            Self::NotFound => 404,
            Self::Conflict => 409,
            Self::Refused => 422,
            Self::Forbidden => 403,
            Self::Unavailable => 503,
            Self::Internal => 500,
        }
    }
}

/// An error as every API of ours answers it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct ApiError {
    /// What kind.
    pub code: ErrorCode,
    /// What happened: field, value, reason; no full stop.
    pub message: String,
    /// What to do about it, where we know.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hint: Option<String>,
}

impl ApiError {
    /// An error of `code` that says `message`.
    #[must_use]
    pub fn new(code: ErrorCode, message: impl Into<String>) -> Self {
        Self { code, message: message.into(), hint: None }
    }

    /// The same, with advice.
    #[must_use]
    pub fn with_hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }
}

impl fmt::Display for ApiError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for ApiError {}

/// An error and its causes on one line, for a log or for the operator.
#[must_use]
pub fn error_chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text.push_str(": ");
        text.push_str(&cause.to_string());
        source = cause.source();
    }
    text
}
