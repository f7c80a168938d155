//! The bare handler: two actix-web workers, a `ThreadedProducer`, one countdown a request.

use std::{
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::Duration,
};

use actix_web::{App, HttpRequest, HttpResponse, HttpServer, http::header::CONTENT_TYPE, rt::System, web};
use rdkafka::{
    ClientConfig, ClientContext,
    error::KafkaError,
    message::DeliveryResult,
    producer::{BaseRecord, ProducerContext, ThreadedProducer},
    types::RDKafkaErrorCode as Code,
};
use serde_json::value::RawValue;
use tokio::sync::oneshot;

use super::Head;

/// As ingestd's `http.max_body`.
const LARGEST_BODY: usize = 16 << 20;

pub fn serve(listen: &str, brokers: &str, topic: String) -> anyhow::Result<()> {
    let mut settings = ClientConfig::new();
    settings
        .set("bootstrap.servers", brokers)
        .set("acks", "all")
        .set("enable.idempotence", "true")
        .set("compression.codec", "zstd")
        .set("linger.ms", "1");
    let producer: ThreadedProducer<Answers> = settings.create_with_context(Answers)?;
    let door = web::Data::new(Door { producer, topic });
    System::new().block_on(async move {
        let app = move || {
            App::new()
                .app_data(door.clone())
                .app_data(web::PayloadConfig::new(LARGEST_BODY))
                .route("/v1/events", web::post().to(events))
        };
        HttpServer::new(app).workers(2).bind(listen)?.run().await
    })?;
    Ok(())
}

struct Door {
    producer: ThreadedProducer<Answers>,
    topic: String,
}

async fn events(request: HttpRequest, body: web::Bytes, door: web::Data<Door>) -> HttpResponse {
    let ndjson = request.headers().get(CONTENT_TYPE).is_some_and(|value| value == "application/x-ndjson");
    let Some(events) = split(&body, ndjson) else { return HttpResponse::BadRequest().finish() };
    // All of them, before the first is sent.
    let heads: Result<Vec<Head<'_>>, _> =
        events.iter().map(|event| serde_json::from_slice::<Head<'_>>(event)).collect();
    let Ok(heads) = heads else { return HttpResponse::BadRequest().finish() };
    if heads.iter().any(|head| head.kind.is_empty()) {
        return HttpResponse::BadRequest().finish();
    }
    let accepted = events.len();
    if accepted == 0 {
        return HttpResponse::Ok().content_type("application/json").body("{\"accepted\":0}");
    }
    let (done, answer) = oneshot::channel();
    let countdown = Arc::new(Countdown {
        left: AtomicUsize::new(accepted),
        failed: AtomicBool::new(false),
        done: Mutex::new(Some(done)),
    });
    for (event, head) in events.into_iter().zip(&heads) {
        let mut record = BaseRecord::with_opaque_to(&door.topic, countdown.clone()).payload(event);
        if let Some(client) = &head.client_id {
            record = record.key(client.as_bytes());
        }
        while let Err((error, refused)) = door.producer.send(record) {
            if !matches!(error, KafkaError::MessageProduction(Code::QueueFull)) {
                return HttpResponse::ServiceUnavailable().finish();
            }
            actix_web::rt::time::sleep(Duration::from_millis(1)).await;
            record = refused;
        }
    }
    match answer.await {
        Ok(true) => HttpResponse::Ok().content_type("application/json").body(format!("{{\"accepted\":{accepted}}}")),
        _ => HttpResponse::ServiceUnavailable().finish(),
    }
}

fn split(body: &[u8], ndjson: bool) -> Option<Vec<&[u8]>> {
    if ndjson {
        let lines = body.split(|byte| *byte == b'\n');
        return Some(lines.filter(|line| !line.trim_ascii().is_empty()).collect());
    }
    if body.trim_ascii_start().first() == Some(&b'[') {
        let elements: Vec<&RawValue> = serde_json::from_slice(body).ok()?;
        return Some(elements.into_iter().map(|element| element.get().as_bytes()).collect());
    }
    Some(vec![body])
}

/// A request whose records are under way; the last one's acknowledgement answers it.
struct Countdown {
    left: AtomicUsize,
    failed: AtomicBool,
    done: Mutex<Option<oneshot::Sender<bool>>>,
}

struct Answers;

impl ClientContext for Answers {}

impl ProducerContext for Answers {
    type DeliveryOpaque = Arc<Countdown>;

    fn delivery(&self, delivery: &DeliveryResult<'_>, countdown: Arc<Countdown>) {
        if delivery.is_err() {
            countdown.failed.store(true, Ordering::Relaxed);
        }
        if countdown.left.fetch_sub(1, Ordering::AcqRel) == 1
            && let Some(done) = countdown.done.lock().unwrap_or_else(PoisonError::into_inner).take()
        {
            // An error says that the client has gone.
            let _ = done.send(!countdown.failed.load(Ordering::Relaxed));
        }
    }
}
