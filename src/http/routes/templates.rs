//! Templates: plain rows of the store.

use super::{
    made::{Made, make},
    not_found,
};
use crate::http::{
    dto::template::{NewTemplate, TemplateBody, read_template},
    error::{ApiError, ProblemBody},
    extract::{Caller, Id, Post, Query},
    paging::{List, if_match, json, tagged, unchanged, with_header},
    state::HttpState,
};
use axum::{
    extract::State,
    http::{HeaderMap, StatusCode, Uri, header},
    response::{IntoResponse, Response},
};
use vman_actors::templates;
use vman_model::{TemplateName, change::IdempotentAnswer};

/// Make a template
#[utoipa::path(
    post, path = "/templates", tag = "templates",
    params(("Idempotency-Key" = Option<String>, Header, description = "The same key and body gives the same answer again")),
    request_body(content = NewTemplate, example = json!({"name": "small", "cpu_count": 1, "ram_mib": 512})),
    responses(
        (status = 201, description = "Made", body = TemplateBody<'static>),
        (status = "default", description = "Refused", body = ProblemBody<'static>, content_type = "application/problem+json"),
    )
)]
pub(crate) async fn create_template(
    State(state): State<HttpState>,
    post: Post,
) -> Result<Response, ApiError> {
    let state = &state;
    make(state, post, |mut post, key| async move {
        let handles = state.handles();
        let record = read_template(state, &mut post, handles.clock.now())?;
        let name = record.name.clone();
        templates::create(&handles.store, record, post.caller.origin(), key).await?;
        Ok(name)
    })
    .await
}

impl Made for TemplateName {
    const WHAT: &'static str = "template";

    fn of(answer: IdempotentAnswer) -> Option<Self> {
        match answer {
            IdempotentAnswer::Template(name) => Some(name),
            _ => None,
        }
    }

    fn created(&self, state: &HttpState) -> Option<Response> {
        let inventory = state.inventory();
        let row = inventory.templates.get(self)?;
        let response = json(StatusCode::CREATED, &TemplateBody::of(row));
        let response = with_header(response, header::LOCATION, &format!("/templates/{self}"));
        Some(tagged(response, row.revision))
    }
}

/// List the templates
#[utoipa::path(
    get, path = "/templates", tag = "templates",
    params(
        ("limit" = Option<u64>, Query, description = "At most this many, 1 to 1000"),
        ("cursor" = Option<String>, Query, description = "From the Link header of the page before"),
    ),
    responses(
        (status = 200, description = "By name", body = Vec<TemplateBody<'static>>),
        (status = 304, description = "Unchanged since the revision in If-None-Match"),
        (status = "default", description = "Refused", body = ProblemBody<'static>, content_type = "application/problem+json"),
    )
)]
pub(crate) async fn list_templates(
    State(state): State<HttpState>,
    list: List<TemplateName>,
) -> Result<Response, ApiError> {
    let page = list.finish()?;
    let inventory = state.inventory();
    let rows = inventory.templates.range::<_, TemplateName>(page.upwards());
    Ok(page.answer(&inventory, rows, |row| TemplateBody::of(row)))
}

/// One template
#[utoipa::path(
    get, path = "/templates/{name}", tag = "templates",
    params(("name" = String, Path, description = "The template")),
    responses(
        (status = 200, description = "The template", body = TemplateBody<'static>),
        (status = 304, description = "Unchanged since the revision in If-None-Match"),
        (status = "default", description = "Refused", body = ProblemBody<'static>, content_type = "application/problem+json"),
    )
)]
pub(crate) async fn get_template(
    State(state): State<HttpState>,
    Id(name): Id<TemplateName>,
    uri: Uri,
    headers: HeaderMap,
) -> Result<Response, ApiError> {
    Query::of(&uri)?.finish()?;
    let inventory = state.inventory();
    let row = inventory
        .templates
        .get(&name)
        .ok_or_else(|| not_found("template", &name))?;
    if let Some(same) = unchanged(&headers, row.revision) {
        return Ok(same);
    }
    Ok(tagged(
        json(StatusCode::OK, &TemplateBody::of(row)),
        row.revision,
    ))
}

/// Delete a template that no VM uses
#[utoipa::path(
    delete, path = "/templates/{name}", tag = "templates",
    params(
        ("name" = String, Path, description = "The template"),
        ("If-Match" = Option<String>, Header, description = "Only if it still has this revision"),
    ),
    responses(
        (status = 204, description = "Deleted"),
        (status = "default", description = "Refused; 409 while a VM uses it", body = ProblemBody<'static>, content_type = "application/problem+json"),
    )
)]
pub(crate) async fn delete_template(
    State(state): State<HttpState>,
    caller: Caller,
    Id(name): Id<TemplateName>,
    uri: Uri,
    headers: HeaderMap,
) -> Result<Response, ApiError> {
    Query::of(&uri)?.finish()?;
    let handles = state.handles();
    if let Some(row) = state.inventory().templates.get(&name) {
        if_match(&headers, row.revision, "template")?;
    }
    let now = handles.clock.now();
    templates::delete(&handles.store, name, caller.origin(), now).await?;
    Ok(StatusCode::NO_CONTENT.into_response())
}
