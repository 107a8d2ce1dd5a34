//! The official Rust engine crate in a minimal axum server.
//!
//! `axum-engine PORT KEY DOCUMENT`: flags, identities and the document of one environment, for one server-side key,
//! with layers for CORS, gzip and both slash forms. The context, the document's bytes and the order of features are
//! prepared once; the rest is done per request, as the crate's interface requires. Runtime and allocator are the
//! defaults.
use std::sync::Arc;

use axum::Router;
use axum::body::Bytes;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use flagsmith_flag_engine::engine::get_evaluation_result;
use flagsmith_flag_engine::engine_eval::{
    EngineEvaluationContext, EvaluationResult, add_identity_to_context, environment_to_context,
    remove_identity_from_context,
};
use flagsmith_flag_engine::environments::builders::build_environment_struct;
use flagsmith_flag_engine::identities::Trait;
use flagsmith_flag_engine::types::FlagsmithValue;
use serde::{Deserialize, Serialize};
use tower_http::compression::CompressionLayer;
use tower_http::cors::{AllowHeaders, AllowMethods, AllowOrigin, CorsLayer};
use tower_http::normalize_path::NormalizePath;

struct Environment {
    key: String,
    document: Bytes,
    context: EngineEvaluationContext,
    without_identity: EngineEvaluationContext,
    names: Vec<String>,
}

#[derive(Serialize)]
struct Feature<'a> {
    id: u32,
    name: &'a str,
    #[serde(rename = "type")]
    kind: &'a str,
}

#[derive(Serialize)]
struct Flag<'a> {
    feature: Feature<'a>,
    enabled: bool,
    feature_state_value: &'a FlagsmithValue,
}

#[derive(Deserialize)]
struct Identity {
    identifier: String,
    #[serde(default)]
    traits: Vec<Trait>,
}

#[derive(Serialize)]
struct IdentityAnswer<'a> {
    identifier: &'a str,
    traits: &'a [Trait],
    flags: Vec<Flag<'a>>,
}

impl Environment {
    fn load(key: &str, path: &str) -> Self {
        let document = std::fs::read(path).expect("a document");
        let json = serde_json::from_slice(&document).expect("JSON");
        let environment = build_environment_struct(json);
        let names = environment.feature_states.iter().map(|state| state.feature.name.clone()).collect();
        let context = environment_to_context(environment);
        let without_identity = remove_identity_from_context(&context);
        Self { key: key.to_owned(), document: document.into(), context, without_identity, names }
    }

    fn allows(&self, headers: &HeaderMap) -> bool {
        headers.get("x-environment-key").is_some_and(|key| key.as_bytes() == self.key.as_bytes())
    }

    fn flags<'a>(&self, result: &'a EvaluationResult) -> Vec<Flag<'a>> {
        let flags = self.names.iter().filter_map(|name| result.flags.get(name));
        let flag = |flag: &'a _| {
            let flagsmith_flag_engine::engine_eval::FlagResult { name, enabled, value, metadata, .. } = flag;
            let feature = Feature { id: metadata.feature_id, name, kind: &metadata.feature_type };
            Flag { feature, enabled: *enabled, feature_state_value: value }
        };
        flags.map(flag).collect()
    }
}

fn json(body: impl Into<Bytes>) -> Response {
    ([(header::CONTENT_TYPE, "application/json")], body.into()).into_response()
}

async fn flags(State(environment): State<Arc<Environment>>, headers: HeaderMap) -> Response {
    if !environment.allows(&headers) {
        return StatusCode::UNAUTHORIZED.into_response();
    }
    let result = get_evaluation_result(&environment.without_identity);
    json(serde_json::to_vec(&environment.flags(&result)).expect("plain values"))
}

async fn identities(
    State(environment): State<Arc<Environment>>,
    headers: HeaderMap,
    body: Bytes,
) -> Response {
    if !environment.allows(&headers) {
        return StatusCode::UNAUTHORIZED.into_response();
    }
    let Ok(identity) = serde_json::from_slice::<Identity>(&body) else {
        return StatusCode::UNPROCESSABLE_ENTITY.into_response();
    };
    let context = add_identity_to_context(&environment.context, &identity.identifier, &identity.traits);
    let result = get_evaluation_result(&context);
    let flags = environment.flags(&result);
    let answer = IdentityAnswer { identifier: &identity.identifier, traits: &identity.traits, flags };
    json(serde_json::to_vec(&answer).expect("plain values"))
}

async fn document(State(environment): State<Arc<Environment>>, headers: HeaderMap) -> Response {
    if !environment.allows(&headers) {
        return StatusCode::UNAUTHORIZED.into_response();
    }
    json(environment.document.clone())
}

fn main() {
    let arguments: Vec<String> = std::env::args().collect();
    let [_, port, key, path] = arguments.as_slice() else { panic!("axum-engine PORT KEY DOCUMENT") };
    let environment = Arc::new(Environment::load(key, path));
    let router = Router::new()
        .route("/api/v1/flags", get(flags))
        .route("/api/v1/identities", post(identities))
        .route("/api/v1/environment-document", get(document))
        .with_state(environment);
    let origins = AllowOrigin::mirror_request();
    let cors = CorsLayer::new().allow_origin(origins).allow_methods(AllowMethods::mirror_request());
    let router =
        router.layer(CompressionLayer::new()).layer(cors.allow_headers(AllowHeaders::mirror_request()));
    let router = Router::new().fallback_service(NormalizePath::trim_trailing_slash(router));
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    runtime.block_on(async {
        let listener = tokio::net::TcpListener::bind(("127.0.0.1", port.parse().expect("a port"))).await;
        axum::serve(listener.expect("a free port"), router).await.expect("serves for ever");
    });
}
