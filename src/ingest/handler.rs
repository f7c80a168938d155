//! The routes of the ingest listener, and a request's way from its head to its answer.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use actix_web::{
    HttpRequest, HttpResponse,
    http::{Method, StatusCode},
    web::{self, ServiceConfig},
};
use bytes::Bytes;
use prometheus_client::metrics::{counter::Counter, gauge::Gauge};
use tokio::sync::oneshot::Receiver;
use tokio_util::task::TaskTracker;

use super::{
    body,
    check::Checked,
    cloudevents::format_of,
    format::Format,
    in_flight::Reservation,
    otlp::{self, Encoding},
    replies::summary,
    shape::Shape,
    source,
};
use crate::{
    config::{Config, HttpSource, LiveConfig},
    event::EventFields,
    health::{Closed, Health},
    http::Problem,
    log::{Delivery, Ingress, NotTaken, Publish, Ticket, kafka},
    metrics::{Metrics, ReasonLabel, StatusLabel},
    names::{ActorName, dependency},
    position::Timestamp,
};

/// What the workers share. Limits are read from the live configuration once a request.
pub struct Intake {
    ingress: Ingress,
    config: LiveConfig,
    /// As at the start: what the log's readers go by, too.
    fields: EventFields,
    health: Health,
    metrics: Arc<Metrics>,
    /// `requests{status="200"}`, kept at hand because nearly every request counts here.
    answered_ok: Counter,
    /// Requests being handled, so that a stop can wait for them.
    under_way: TaskTracker,
    /// Requests that wait for the producer's answer.
    waiting: Gauge,
}

/// Counts a request as waiting, until it is dropped.
struct Waiting(Gauge);

impl Waiting {
    fn enter(gauge: &Gauge) -> Self {
        gauge.inc();
        Self(gauge.clone())
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        self.0.dec();
    }
}

/// How often a request that waits for long looks whether its queue has gone.
const LOOK_AGAIN: Duration = Duration::from_millis(100);

impl Intake {
    pub fn new(ingress: Ingress, config: LiveConfig, health: Health, metrics: Arc<Metrics>) -> Self {
        let fields = EventFields::from(&config.load().event);
        let answered_ok = metrics.requests.get_or_create_owned(&StatusLabel { status: 200 });
        let waiting = metrics.depth(ActorName::Producer);
        waiting.set(0);
        let under_way = TaskTracker::new();
        Self { ingress, config, fields, health, metrics, answered_ok, under_way, waiting }
    }

    /// Resolves when no request is being handled.
    pub async fn idle(&self) {
        self.under_way.close();
        self.under_way.wait().await;
    }

    /// Refuses a request before anything of it is read.
    fn admit(&self) -> Result<(), Problem> {
        self.health.gate.closed().map_or(Ok(()), |(closed, why)| Err(refused_by_gate(closed, &why)))
    }

    /// Reads a body of this shape, checks its events, and makes the valid ones durable. The answer to them is to be a
    /// part of the reservation.
    async fn accept(
        self: &Arc<Self>,
        request: &HttpRequest,
        payload: web::Payload,
        shape: Shape,
    ) -> Result<(Checked, Reservation), Problem> {
        let config = self.config.load_full();
        let body = body::read(request, payload, &config.http, &self.metrics.in_flight_bytes).await?;
        let received = Timestamp::now();
        let mut share = Reservation::new(&self.metrics.in_flight_bytes, config.http.max_in_flight);
        let mut checked = if shape.is_long(&body) {
            let checked;
            (checked, share) = self.check_aside(body, shape, config.clone(), received, share).await?;
            checked
        } else {
            shape.check(body, &config.http, &self.fields, received, &mut share)?
        };
        if !checked.records.is_empty() {
            let too_large = self.publish(&mut checked, received, config.http.request_timeout, &mut share).await?;
            checked.refuse_too_large(too_large);
        }
        self.metrics.events_accepted.inc_by(checked.accepted.len() as u64);
        for error in &checked.errors {
            self.rejected(error.invalid.code.as_str());
        }
        Ok((checked, share))
    }

    async fn check_aside(
        self: &Arc<Self>,
        body: Bytes,
        shape: Shape,
        config: Arc<Config>,
        received: Timestamp,
        mut share: Reservation,
    ) -> Result<(Checked, Reservation), Problem> {
        let intake = self.clone();
        let checking = move || {
            let checked = shape.check(body, &config.http, &intake.fields, received, &mut share)?;
            Ok((checked, share))
        };
        tokio::task::spawn_blocking(checking).await.unwrap_or_else(|error| {
            tracing::error!(%error, "checking a body failed");
            Err(Problem::new(StatusCode::INTERNAL_SERVER_ERROR, "the body could not be checked"))
        })
    }

    /// Waits until the records are durable. Returns the indexes of those that the queue refuses for their size.
    async fn publish(
        &self,
        checked: &mut Checked,
        received: Timestamp,
        timeout: Duration,
        share: &mut Reservation,
    ) -> Result<Vec<usize>, Problem> {
        let aside = match std::mem::take(&mut checked.aside) {
            none if none.is_empty() => Bytes::new(),
            // Like the body, it counts for as long as the queue works on it, also when the client has given up.
            aside => share.split_off(aside.capacity()).hold(aside),
        };
        let unanswered = &self.metrics.events_produced_unanswered;
        let (ticket, delivery) = Ticket::new(checked.records.len(), unanswered.clone());
        let publish = Publish {
            body: checked.body.clone(),
            aside,
            events: std::mem::take(&mut checked.records),
            received,
            ticket,
        };
        let asked = Arc::downgrade(&publish.ticket);
        let is_buffered = move || asked.upgrade().is_some_and(|ticket| ticket.is_buffered());
        let _waiting = Waiting::enter(&self.waiting);
        self.ingress.publish(publish).map_err(not_taken)?;
        // The whole timeout again, after that for the body: the queue's own delivery timeout is just below it, so that
        // an answer "unknown" stays rare.
        let delivery = self.confirmed(delivery, is_buffered, timeout).await.map_err(|why| unknown(&why))?;
        let problem = match (delivery.unavailable, delivery.refused) {
            (None, None) => return Ok(delivery.too_large),
            (None, Some(reason)) if delivery.durable == 0 => refused(&reason),
            (Some(reason), _) | (None, Some(reason)) => unknown(&reason),
        };
        unanswered.inc_by(delivery.durable as u64);
        Err(problem)
    }

    /// Waits for the log's answer, at most `timeout`; while it is known that Kafka takes nothing, for moments unless
    /// the buffer has the events.
    async fn confirmed(
        &self,
        mut delivery: Receiver<Delivery>,
        is_buffered: impl Fn() -> bool,
        timeout: Duration,
    ) -> Result<Delivery, String> {
        let late = || "the queue did not confirm in time (http.request_timeout)".to_owned();
        let deadline = Instant::now() + timeout;
        let mut wait = kafka::UNANSWERED_REQUEST;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            match tokio::time::timeout(wait.min(left), &mut delivery).await {
                Ok(delivery) => return delivery.map_err(|_| late()),
                Err(_) if wait >= left => return Err(late()),
                Err(_) => {}
            }
            if !is_buffered()
                && let Some(outage) = self.health.outage(&[dependency::KAFKA, dependency::KAFKA_TOPIC])
            {
                return Err(outage);
            }
            wait = LOOK_AGAIN;
        }
    }

    /// Answers a request that brings events, and counts it.
    async fn counted(&self, answer: impl Future<Output = Result<HttpResponse, Problem>>) -> HttpResponse {
        let started = Instant::now();
        let _under_way = self.under_way.token();
        let response = match answer.await {
            Ok(response) => {
                self.answered(response.status());
                response
            }
            Err(problem) => {
                if let Some(code) = problem.code {
                    self.rejected(code);
                }
                self.refuse(problem)
            }
        };
        self.metrics.request_duration.observe(started.elapsed().as_secs_f64());
        response
    }

    /// Counts an answer.
    pub fn answered(&self, status: StatusCode) {
        if status == StatusCode::OK {
            self.answered_ok.inc();
        } else {
            self.metrics.requests.get_or_create(&StatusLabel { status: status.as_u16() }).inc();
        }
    }

    fn rejected(&self, code: &'static str) {
        self.metrics.events_rejected.get_or_create(&ReasonLabel { reason: code }).inc();
    }

    fn refuse(&self, problem: Problem) -> HttpResponse {
        self.answered(problem.status);
        problem.into_response()
    }
}

/// New events are refused at present.
fn refused_by_gate(closed: Closed, why: &str) -> Problem {
    let (seconds, what) = match closed {
        // Another daemon, or this one restarted, is there as soon as a load balancer or systemd has noticed.
        Closed::Draining => (5, "stopping"),
        // Uploads and trimming, or an operator, have to free the disk first.
        Closed::DiskFull => (30, "the disk is too full"),
        // A broker's election or restart takes seconds.
        Closed::QueueUnavailable => (5, "the queue cannot be reached"),
        Closed::Starting => (1, "starting"),
    };
    let problem = unavailable(seconds, format!("no events are accepted at present: {what} ({why})"));
    Problem { closing: closed == Closed::Draining, ..problem }
}

fn not_taken(why: NotTaken) -> Problem {
    match why {
        NotTaken::Busy => Problem::too_busy("too many requests wait for the queue: try again"),
        // A panicked producer is back after a back-off that begins at a fraction of a second.
        NotTaken::Restarting => {
            Problem::unavailable("the producer is being restarted; nothing of this request was stored")
        }
    }
}

fn refused(reason: &str) -> Problem {
    unavailable(5, format!("{reason}; nothing of this request was stored: send it again later"))
}

fn unknown(reason: &str) -> Problem {
    let detail = format!(
        "{reason}; it is not known which events of this request were stored: sending it again may store events twice, \
         with the same id where the client sent one"
    );
    unavailable(5, detail)
}

fn unavailable(retry_after: u32, detail: String) -> Problem {
    Problem { retry_after: Some(retry_after), ..Problem::unavailable(detail) }
}

fn not_allowed(allow: &'static str) -> Problem {
    Problem::not_allowed(allow, format!("this path takes {allow} only"))
}

/// The routes: `POST /v1/events`, `POST /v1/logs`, `GET /health`, and the paths of `[[http.source]]`, which are live.
pub fn routes(app: &mut ServiceConfig, intake: web::Data<Intake>) {
    let refuse =
        |problem: fn() -> Problem| web::to(move |intake: web::Data<Intake>| async move { intake.refuse(problem()) });
    app.app_data(intake)
        .service(
            web::resource("/v1/events")
                .route(web::post().to(post_events))
                .default_service(refuse(|| not_allowed("POST"))),
        )
        .service(
            web::resource("/v1/logs")
                .route(web::post().to(post_logs))
                .default_service(refuse(|| not_allowed("POST"))),
        )
        .service(
            web::resource("/health")
                .route(web::get().to(get_health))
                .route(web::head().to(get_health))
                .default_service(refuse(|| not_allowed("GET, HEAD"))),
        )
        .default_service(web::to(any_other));
}

async fn post_events(request: HttpRequest, payload: web::Payload, intake: web::Data<Intake>) -> HttpResponse {
    let answer = async {
        intake.admit()?;
        body::check_encoding(request.headers())?;
        let (format, in_headers) = format_of(request.headers())?;
        let (checked, share) = intake.accept(&request, payload, Shape::Events(format, in_headers)).await?;
        Ok(summary(&checked, share))
    };
    intake.counted(answer).await
}

async fn post_logs(request: HttpRequest, payload: web::Payload, intake: web::Data<Intake>) -> HttpResponse {
    let encoding = match Encoding::of(request.headers()) {
        Ok(encoding) => encoding,
        Err(problem) => return intake.refuse(problem),
    };
    let taken = async {
        intake.admit()?;
        body::check_encoding(request.headers())?;
        let (checked, share) = intake.accept(&request, payload, Shape::Logs(encoding)).await?;
        Ok(otlp::answer(encoding, &checked, share))
    };
    let answer = async {
        taken.await.or_else(|problem: Problem| {
            // Refusals have the encoding of the request, too.
            problem.code.into_iter().for_each(|code| intake.rejected(code));
            Ok(otlp::refusal(encoding, problem))
        })
    };
    intake.counted(answer).await
}

/// Whatever is no path of ours may be that of a source.
async fn any_other(request: HttpRequest, payload: web::Payload, intake: web::Data<Intake>) -> HttpResponse {
    let (sent, decoded) = (request.path(), request.match_info().as_str());
    let is_meant = |source: &&HttpSource| source.path == sent || source.path == decoded;
    let source = intake.config.load().http.source.iter().find(is_meant).cloned();
    let Some(source) = source.map(Arc::new) else {
        let detail = "events are taken by POST /v1/events, logs by POST /v1/logs, and other bodies at the paths of \
                      [[http.source]]";
        return intake.refuse(Problem::not_found(detail));
    };
    if request.method() != Method::POST {
        return intake.refuse(not_allowed("POST"));
    }
    let answer = async {
        intake.admit()?;
        body::check_encoding(request.headers())?;
        // Whatever it is called, JSON is what is read.
        let lines = Format::of(request.headers()).ok().filter(|format| *format == Format::Ndjson);
        let lines = lines.unwrap_or(Format::Json);
        let (checked, share) = intake.accept(&request, payload, Shape::Source(source.clone(), lines)).await?;
        Ok(source::answer(summary(&checked, share), &source))
    };
    intake.counted(answer).await
}

/// For load balancers: whether events are accepted, and no more.
async fn get_health(intake: web::Data<Intake>) -> HttpResponse {
    if intake.health.readiness().ready {
        intake.answered(StatusCode::OK);
        return HttpResponse::Ok().finish();
    }
    intake.refuse(Problem::unavailable("not ready"))
}
