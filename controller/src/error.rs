//! Why a controller cannot start or go on, and how the store's failures look to a caller.

use crate::store::StoreError;
use std::{net::SocketAddr, path::PathBuf};
use vmotion_model::{ApiError, ErrorCode, error_chain};
use vmotion_transport::IdentityError;

/// Why a controller ended.
#[derive(Debug, thiserror::Error)]
pub enum ControllerError {
    /// The data directory cannot be made.
    #[error("Cannot make data directory {path}")]
    Data {
        /// The directory.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// The store cannot be opened, or what it holds cannot be read.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// What the store holds cannot be understood.
    #[error("Store cannot be read: {0}")]
    Records(ApiError),
    /// The address cannot be listened on.
    #[error("Cannot listen on {address}")]
    Listen {
        /// The address.
        address: SocketAddr,
        /// Why.
        source: std::io::Error,
    },
    /// The certificate cannot be used.
    #[error(transparent)]
    Identity(#[from] IdentityError),
    /// The certificate is somebody else's; every client would refuse us.
    #[error("Certificate is of {0}: a controller needs one of spiffe://vmotion/controller/NAME")]
    NotController(String),
    /// A store cannot be copied.
    #[error("{0}")]
    Copy(String),
    /// The HTTP server failed.
    #[error("HTTP server failed")]
    Serve(#[source] std::io::Error),
}

impl From<StoreError> for ApiError {
    fn from(error: StoreError) -> Self {
        let code = match error {
            StoreError::TooLarge(_) | StoreError::Setting(_) => ErrorCode::Invalid,
            StoreError::Locked(_)
            | StoreError::Corrupt { .. }
            | StoreError::Open { .. }
            | StoreError::Unreachable { .. }
            | StoreError::NoQuorum { .. }
            | StoreError::Full { .. }
            | StoreError::Denied { .. }
            | StoreError::NotLeader
            | StoreError::Failed(_) => ErrorCode::Unavailable,
        };
        Self::new(code, error.to_string())
    }
}

impl From<ControllerError> for ApiError {
    fn from(error: ControllerError) -> Self {
        let code = match error {
            ControllerError::Store(error) => return error.into(),
            ControllerError::Records(error) => return error,
            ControllerError::NotController(_) => ErrorCode::Invalid,
            ControllerError::Copy(_) => ErrorCode::Refused,
            ControllerError::Data { .. }
            | ControllerError::Listen { .. }
            | ControllerError::Identity(_)
            | ControllerError::Serve(_) => ErrorCode::Internal,
        };
        Self::new(code, error_chain(&error))
    }
}

/// Shorthands for the errors handlers answer with.
pub(crate) fn invalid(message: impl Into<String>) -> ApiError {
    ApiError::new(ErrorCode::Invalid, message)
}

pub(crate) fn not_found(message: impl Into<String>) -> ApiError {
    ApiError::new(ErrorCode::NotFound, message)
}

pub(crate) fn conflict(message: impl Into<String>) -> ApiError {
    ApiError::new(ErrorCode::Conflict, message)
}

pub(crate) fn refused(message: impl Into<String>) -> ApiError {
    ApiError::new(ErrorCode::Refused, message)
}

pub(crate) fn unavailable(message: impl Into<String>) -> ApiError {
    ApiError::new(ErrorCode::Unavailable, message)
}

pub(crate) fn forbidden(message: impl Into<String>) -> ApiError {
    ApiError::new(ErrorCode::Forbidden, message)
}
