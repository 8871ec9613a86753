//! Every refusal of the API, as RFC 9457 problem+json.
//!
//! Owns: the stable codes with their status ([`ERROR_CODES`]) and the shape of
//! the answer. [`ApiError`] is turned into its bytes by `edge.rs`, where the
//! request's id is known.
//! Must not: know routes or actors; `refusal.rs` translates their errors.

use axum::{
    http::{HeaderValue, StatusCode, header},
    response::{IntoResponse, Response},
};
use serde::Serialize;
use utoipa::ToSchema;

macro_rules! codes {
    ($($name:ident $word:literal $status:literal $title:literal,)*) => {
        /// The stable codes of the API's errors.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum Code {
            $(#[doc = $title] $name,)*
        }

        impl Code {
            /// The stable word.
            pub fn as_str(self) -> &'static str {
                match self { $(Code::$name => $word,)* }
            }

            /// The HTTP status it is answered with.
            pub fn status(self) -> u16 {
                match self { $(Code::$name => $status,)* }
            }

            /// What it means in general, in a few words.
            pub fn title(self) -> &'static str {
                match self { $(Code::$name => $title,)* }
            }
        }

        /// Every code with its status and its meaning, for the documentation.
        pub const ERROR_CODES: &[(&str, u16, &str)] = &[$(($word, $status, $title),)*];
    };
}

codes! {
    MalformedJson "malformed_json" 400 "The body is not one JSON value",
    TruncatedBody "truncated_body" 400 "The body ended before it was complete",
    MalformedQuery "malformed_query" 400 "The query has unknown, repeated or wrong parameters",
    MalformedHeader "malformed_header" 400 "A header has a value that cannot be read",
    BadCursor "bad_cursor" 400 "The cursor or event id is not one of this daemon's",
    UnknownTemplate "unknown_template" 400 "The template named by the request is not there",
    UnknownNetwork "unknown_network" 400 "The network named by the request is not configured",
    Unauthorized "unauthorized" 401 "The caller is not known",
    InsufficientScope "insufficient_scope" 403 "The token's scope does not allow this",
    Forbidden "forbidden" 403 "The caller may not do this",
    ForbiddenHost "forbidden_host" 403 "The Host header names another host",
    ForbiddenOrigin "forbidden_origin" 403 "The request comes from another site's page",
    NotFound "not_found" 404 "There is no such thing",
    MethodNotAllowed "method_not_allowed" 405 "The path does not know this method",
    UploadStalled "upload_stalled" 408 "The body did not come in time",
    AlreadyRunning "vm_already_running" 409 "The VM runs already, or is on its way",
    NotRunning "vm_not_running" 409 "The VM does not run",
    BeingStopped "vm_being_stopped" 409 "The VM is being stopped",
    AlreadyPaused "vm_already_paused" 409 "The VM is paused already",
    NotPaused "vm_not_paused" 409 "The VM is not paused",
    HostDraining "host_draining" 409 "The host is to go down, VMs are not started",
    HostNotDrained "host_not_drained" 409 "The host is not drained",
    BeingDeleted "vm_being_deleted" 409 "The VM is being deleted",
    OperationInProgress "operation_in_progress" 409 "Another operation has to end first",
    Recovering "vm_recovering" 409 "The daemon has just started and looks for the VM's QEMU",
    VmExists "vm_exists" 409 "A VM of this name is there",
    VmLimitReached "vm_limit_reached" 409 "There are as many VMs as the configuration allows",
    AddressesExhausted "addresses_exhausted" 409 "Every address of the network is held",
    AddressInUse "address_in_use" 409 "Another VM holds the address",
    ForwardExists "forward_exists" 409 "The port of the host is forwarded already",
    TemplateExists "template_exists" 409 "A template of this name is there",
    TemplateInUse "template_in_use" 409 "VMs were made from the template",
    DiskExists "disk_exists" 409 "A disk of this name is there",
    DiskAttached "disk_attached" 409 "The disk is attached to a VM",
    DiskNotAttached "disk_not_attached" 409 "The disk is not attached to a VM",
    DiskIsRoot "disk_is_root" 409 "The disk is a VM's root disk",
    DiskBusy "disk_busy" 409 "The disk is being made, deleted or changed",
    DiskFileMissing "disk_file_missing" 409 "The disk's file is gone",
    NoFreeDiskSlot "no_free_disk_slot" 409 "All slots of the VM for disks are taken",
    NoFreeNicSlot "no_free_nic_slot" 409 "All slots of the VM for network cards are taken",
    NicNotAttached "nic_not_attached" 409 "The VM has no such network card any more",
    NicIsFirst "nic_is_first" 409 "The network card is the VM's first",
    NoNetwork "no_network" 409 "VMs have no network on this host",
    ImageExists "image_exists" 409 "An image of this name is there",
    ImageBeingUploaded "image_being_uploaded" 409 "Another upload of this image is under way",
    ImageInUse "image_in_use" 409 "The image is used",
    LogsNotKept "logs_not_kept" 409 "The daemon's log is kept nowhere it could be read from",
    OperationNotCancellable "operation_not_cancellable" 409 "The operation cannot be cancelled",
    OperationFinished "operation_finished" 409 "The operation has ended already",
    OperationFailed "operation_failed" 409 "The operation ended without doing what was asked",
    TokenExists "token_exists" 409 "A token of this name is there",
    TokenLimitReached "token_limit_reached" 409 "There are as many tokens as there may be",
    KeyInFlight "idempotency_key_in_flight" 409 "A request under this Idempotency-Key is under way",
    KeyResultGone "idempotency_result_gone" 409 "What was made under this Idempotency-Key is gone",
    Stale "stale_revision" 412 "It has changed since the revision in If-Match",
    TooLarge "too_large" 413 "The body is larger than the limit",
    WrongContentType "unsupported_media_type" 415 "The body is not of a type this path takes",
    InvalidFields "invalid_fields" 422 "Fields are missing or have impossible values",
    UnknownField "unknown_field" 422 "The body has fields that this path does not know",
    ChecksumMismatch "checksum_mismatch" 422 "The body is not what its checksum promised",
    ImageRefused "image_refused" 422 "The file is not an image that can be used",
    KeyReused "idempotency_key_reused" 422 "The Idempotency-Key was used for another request",
    TooManyCommands "too_many_commands" 429 "Too many commands wait for this VM",
    Internal "internal" 500 "VMAN itself failed; this is a bug",
    Overloaded "overloaded" 503 "Too many requests are under way",
    Unavailable "unavailable" 503 "A part of VMAN is being restarted",
    OutcomeUnknown "outcome_unknown" 503 "It is unknown whether the request was carried out",
    VmQuarantined "vm_quarantined" 503 "The VM's actor failed too often and rests",
    NotReady "not_ready" 503 "The daemon is still recovering",
    HostFailed "host_failed" 503 "The host refused something VMAN needs",
    ShuttingDown "shutting_down" 503 "The daemon is stopping",
    HostExhausted "host_exhausted" 507 "More memory or processors would be promised than the host may",
    StorageFull "storage_full" 507 "The host's storage is full",
    StorageReadOnly "storage_read_only" 507 "The host's storage is read-only",
}

/// What is wrong with one field.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, ToSchema)]
pub struct FieldError {
    /// The field's path (`boot.kernel`).
    pub field: String,
    /// What is wrong with it.
    pub detail: String,
}

/// What a refusal is about.
#[derive(Clone, Debug, Default)]
struct About {
    vm_id: Option<String>,
    disk_id: Option<String>,
    operation_id: Option<String>,
    errors: Vec<FieldError>,
}

/// A refusal on its way to the client.
#[derive(Clone, Debug)]
pub struct ApiError {
    /// What it is.
    pub code: Code,
    /// What happened and what to do.
    pub detail: String,
    /// When to come again, in seconds.
    pub retry_after_s: Option<u32>,
    about: Box<About>,
}

impl ApiError {
    /// A refusal with its sentence: what happened and what to do.
    pub fn new(code: Code, detail: impl Into<String>) -> Self {
        Self {
            code,
            detail: detail.into(),
            retry_after_s: matches!(code.status(), 429 | 503).then_some(1),
            about: Box::default(),
        }
    }

    /// One wrong field of a body.
    pub fn field(field: &str, detail: impl Into<String>) -> Self {
        let error = FieldError {
            field: field.to_owned(),
            detail: detail.into(),
        };
        Self::fields(Code::InvalidFields, vec![error])
    }

    /// Wrong fields, all at once.
    pub fn fields(code: Code, errors: Vec<FieldError>) -> Self {
        let told: Vec<_> = errors
            .iter()
            .map(|error| format!("{}: {}", error.field, error.detail))
            .collect();
        let mut error = Self::new(code, told.join("; "));
        error.about.errors = errors;
        error
    }

    /// Names the field concerned, where the sentence does not begin with it.
    #[must_use]
    pub fn of_field(mut self, field: &str) -> Self {
        self.about.errors.push(FieldError {
            field: field.to_owned(),
            detail: self.detail.clone(),
        });
        self
    }

    /// Names the VM concerned.
    #[must_use]
    pub fn vm(mut self, id: impl ToString) -> Self {
        self.about.vm_id = Some(id.to_string());
        self
    }

    /// Names the operation concerned.
    #[must_use]
    pub fn operation(mut self, id: impl ToString) -> Self {
        self.about.operation_id = Some(id.to_string());
        self
    }

    /// Names the disk concerned.
    #[must_use]
    pub fn disk(mut self, id: impl ToString) -> Self {
        self.about.disk_id = Some(id.to_string());
        self
    }

    /// Says when to come again.
    #[must_use]
    pub fn retry_after(mut self, seconds: u32) -> Self {
        self.retry_after_s = Some(seconds);
        self
    }

    /// The finished answer, with the id of the request it answers.
    pub fn render(&self, request_id: &str) -> Response {
        let problem = ProblemBody {
            r#type: format!("urn:vman:problem:{}", self.code.as_str()),
            title: self.code.title(),
            status: self.code.status(),
            detail: &self.detail,
            code: self.code.as_str(),
            instance: request_id,
            vm_id: self.about.vm_id.as_deref(),
            disk_id: self.about.disk_id.as_deref(),
            operation_id: self.about.operation_id.as_deref(),
            errors: &self.about.errors,
        };
        let body = serde_json::to_vec(&problem).unwrap_or_default();
        let status =
            StatusCode::from_u16(self.code.status()).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        let mut response = (status, body).into_response();
        let headers = response.headers_mut();
        let problem_json = HeaderValue::from_static("application/problem+json");
        headers.insert(header::CONTENT_TYPE, problem_json);
        if let Some(seconds) = self.retry_after_s {
            headers.insert(header::RETRY_AFTER, seconds.into());
        }
        if self.code == Code::Unauthorized {
            let bearer = HeaderValue::from_static("Bearer");
            headers.insert(header::WWW_AUTHENTICATE, bearer);
        }
        response
    }
}

impl IntoResponse for ApiError {
    /// An empty answer that carries the refusal; the edge renders it.
    fn into_response(self) -> Response {
        let status =
            StatusCode::from_u16(self.code.status()).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        let mut response = status.into_response();
        response.extensions_mut().insert(Box::new(self));
        response
    }
}

/// A problem, as RFC 9457 says it.
#[derive(Serialize, ToSchema)]
#[schema(as = Problem)]
pub(crate) struct ProblemBody<'a> {
    /// `urn:vman:problem:` and the code.
    r#type: String,
    /// What the code means in general.
    title: &'a str,
    /// The HTTP status.
    status: u16,
    /// What happened and what to do.
    detail: &'a str,
    /// The stable code.
    code: &'a str,
    /// The id of the request, as in `X-Request-Id`.
    instance: &'a str,
    /// The VM concerned.
    #[serde(skip_serializing_if = "Option::is_none")]
    vm_id: Option<&'a str>,
    /// The disk concerned.
    #[serde(skip_serializing_if = "Option::is_none")]
    disk_id: Option<&'a str>,
    /// The operation concerned.
    #[serde(skip_serializing_if = "Option::is_none")]
    operation_id: Option<&'a str>,
    /// The wrong fields, all at once.
    #[serde(skip_serializing_if = "<[_]>::is_empty")]
    errors: &'a [FieldError],
}
