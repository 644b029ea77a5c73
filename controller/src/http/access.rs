//! Who calls, and what about: checked before a handler runs.

use crate::error::{forbidden, invalid};
use axum::{
    extract::{ConnectInfo, FromRequestParts, Path},
    http::request::Parts,
};
use std::{fmt::Display, str::FromStr};
use vmotion_api::{Caller, Problem};
use vmotion_model::HostName;
use vmotion_transport::{Principal, Role};

fn principal(parts: &Parts) -> Option<&Principal> {
    parts.extensions.get::<ConnectInfo<Caller>>()?.0.principal.as_ref()
}

fn wrong(found: Option<&Principal>, wanted: &str) -> Problem {
    let found = found.map_or_else(|| "a certificate that names nobody".to_owned(), Principal::to_string);
    Problem(forbidden(format!("Only {wanted} may do this; the caller is {found}")))
}

/// Somebody of at least this role, by name.
fn holder(parts: &Parts, role: Role, wanted: &str) -> Result<String, Problem> {
    match principal(parts) {
        Some(caller) if caller.role() >= Some(role) => Ok(caller.name().to_string()),
        other => Err(wrong(other, wanted)),
    }
}

/// The caller may look.
pub(super) struct Viewer;

impl<S: Sync> FromRequestParts<S> for Viewer {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Problem> {
        holder(parts, Role::Viewer, "viewers, operators and admins").map(|_| Self)
    }
}

/// The caller may give orders, under this name.
pub(super) struct Operator(pub(super) String);

impl<S: Sync> FromRequestParts<S> for Operator {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Problem> {
        holder(parts, Role::Operator, "operators and admins").map(Self)
    }
}

/// The caller may say how things are to be, and read who did what.
pub(super) struct Admin;

impl<S: Sync> FromRequestParts<S> for Admin {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Problem> {
        holder(parts, Role::Admin, "admins").map(|_| Self)
    }
}

/// The caller is this host.
pub(super) struct CallingHost(pub(super) HostName);

impl<S: Sync> FromRequestParts<S> for CallingHost {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Problem> {
        match principal(parts) {
            Some(Principal::Host(name)) => Ok(Self(name.clone())),
            other => Err(wrong(other, "hosts")),
        }
    }
}

/// The caller is somebody we know.
pub(super) struct Anybody;

impl<S: Sync> FromRequestParts<S> for Anybody {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Problem> {
        match principal(parts) {
            Some(_) => Ok(Self),
            None => Err(wrong(None, "viewers, operators, admins and hosts")),
        }
    }
}

/// The one name in the path; a bad one is answered with what is wrong with it.
pub(super) struct Named<T>(pub(super) T);

impl<S: Sync + Send, T: FromStr<Err: Display>> FromRequestParts<S> for Named<T> {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Problem> {
        let refused = |error: &dyn Display| -> Problem { invalid(error.to_string()).into() };
        let Path(text) = Path::<String>::from_request_parts(parts, state).await.map_err(|error| refused(&error))?;
        text.parse().map(Self).map_err(|error: T::Err| refused(&error))
    }
}
