//! What is answered instead of an answer.

use std::fmt::Write as _;

use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde_json::Value;

use super::super::openai;
use crate::scheduler::Failure;
use crate::scheduler::backend::InputError;

/// An error response in OpenAI's shape.
pub(super) struct Refusal {
    status: u16,
    body: Value,
    retry_after_s: Option<u64>,
}

impl Refusal {
    pub(super) fn plain(status: u16, code: &str, message: &str) -> Refusal {
        Refusal { status, body: openai::error(status, code, message, None), retry_after_s: None }
    }

    pub(super) fn too_large(limit: usize) -> Refusal {
        let mut message = String::new();
        let _ = write!(message, "the body is larger than {limit} bytes (`body_bytes` in the section [limits])");
        Refusal::plain(413, "too_large", &message)
    }
}

impl From<Failure> for Refusal {
    fn from(failure: Failure) -> Refusal {
        let (status, body) = openai::failure(&failure);
        Refusal { status, body, retry_after_s: failure.retry_after_s }
    }
}

impl From<InputError> for Refusal {
    fn from(error: InputError) -> Refusal {
        Failure::from(error).into()
    }
}

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        let mut response = json_response(self.status, &self.body);
        if let Some(seconds) = self.retry_after_s {
            response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from(seconds));
        }
        response
    }
}

pub(super) fn json_response(status: u16, value: &Value) -> Response {
    json_text(status, value.to_string())
}

/// A response whose body is that JSON.
pub(super) fn json_text(status: u16, mut text: String) -> Response {
    let status = StatusCode::from_u16(status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    text.push('\n');
    (status, [(header::CONTENT_TYPE, "application/json")], text).into_response()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::scheduler::Code;

    #[test]
    fn failures_carry_retry_after() {
        let failure = Failure { retry_after_s: Some(9), ..Failure::new(Code::Busy, "full") };
        let response = Refusal::from(failure).into_response();
        assert_eq!(response.status(), 503);
        assert_eq!(response.headers()[header::RETRY_AFTER], "9");
    }
}
