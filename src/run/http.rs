//! The HTTP server: probes and metrics (`/livez`, `/readyz` with its reasons, `/metrics`), and the API beside them.

use super::api::Api;
use super::status::Status;
use super::stop::Stop;
use crate::metrics::Metrics;
use axum::Router;
use axum::extract::State;
use axum::http::StatusCode;
use axum::http::header::CONTENT_TYPE;
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use std::net::{SocketAddr, TcpListener};
use std::sync::Arc;
use std::time::Duration;

/// What the handlers show.
#[derive(Clone)]
struct Shown {
    status: Arc<Status>,
    metrics: Arc<Metrics>,
}

/// Takes the address, so that a taken one is found before anything else starts.
pub fn bind(address: SocketAddr) -> std::io::Result<TcpListener> {
    let listener = TcpListener::bind(address)?;
    listener.set_nonblocking(true)?;
    Ok(listener)
}

/// Serves until the process stops.
pub fn serve(listener: TcpListener, status: Arc<Status>, metrics: Arc<Metrics>, api: Api, stop: &Stop) -> std::io::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let listener = tokio::net::TcpListener::from_std(listener)?;
        let stop = stop.clone();
        let stopped = async move {
            while !stop.is_asked() {
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        };
        axum::serve(listener, router(status, metrics).merge(api.router())).with_graceful_shutdown(stopped).await
    })
}

fn router(status: Arc<Status>, metrics: Arc<Metrics>) -> Router {
    Router::new()
        .route("/livez", get(live))
        .route("/readyz", get(ready))
        .route("/metrics", get(exposition))
        .with_state(Shown { status, metrics })
}

async fn live(State(shown): State<Shown>) -> Response {
    if shown.status.is_live() { "live\n".into_response() } else { (StatusCode::SERVICE_UNAVAILABLE, "a thread has ended\n").into_response() }
}

async fn ready(State(shown): State<Shown>) -> Response {
    let reasons = shown.status.reasons();
    if reasons.is_empty() {
        return "ready\n".into_response();
    }
    let body: String = reasons.iter().flat_map(|reason| [reason.as_str(), "\n"]).collect();
    (StatusCode::SERVICE_UNAVAILABLE, body).into_response()
}

async fn exposition(State(shown): State<Shown>) -> Response {
    let kind = "application/openmetrics-text; version=1.0.0; charset=utf-8";
    ([(CONTENT_TYPE, kind)], shown.metrics.to_text()).into_response()
}
