//! A provider that answers what a test tells it to, and books that are a list.

use std::{
    collections::VecDeque,
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use async_trait::async_trait;
use futures::{StreamExt, stream};
use multivio::{
    ai::{
        Transformer,
        billing::{Billing, BillingError, BudgetSpent, Reservation, Settlement},
        partial::Piece,
        provider::ProviderName,
        transform::{TransformOutput, TransformRequest, TransformationType},
        transformer::{Order, TransformError, Watcher},
    },
    config::{AiConfig, AiProviderConfig},
    ids::TenantId,
    platforms::Platform,
};
use poem::{
    Body, EndpointExt, Response, Route, Server, handler, http::StatusCode, listener::TcpAcceptor, post, web::Data,
};
use serde_json::{Value, json};
use uuid::Uuid;

/// What a fake provider answers once.
#[derive(Clone)]
pub enum Say {
    /// A status and a body, with headers.
    Plain(u16, Vec<(&'static str, String)>, String),
    /// Pieces of an event stream, then its end.
    Stream(Vec<String>),
    /// Pieces of an event stream, then the connection breaks.
    Broken(Vec<String>),
    /// Pieces of an event stream, then nothing more.
    Hang(Vec<String>),
}

/// One running fake provider. Answers in order; the last answer is repeated.
#[derive(Clone)]
pub struct Fake {
    pub url: String,
    script: Arc<Mutex<VecDeque<Say>>>,
    seen: Arc<Mutex<Vec<Value>>>,
}

impl Fake {
    pub async fn start(script: impl IntoIterator<Item = Say>) -> Self {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        listener.set_nonblocking(true).unwrap();
        let fake = Self {
            url: format!("http://{}/v1", listener.local_addr().unwrap()),
            script: Arc::new(Mutex::new(script.into_iter().collect())),
            seen: Arc::default(),
        };
        let routes = Route::new().at("/v1/chat/completions", post(answer)).data(fake.clone());
        let acceptor = TcpAcceptor::from_std(listener).unwrap();
        tokio::spawn(Server::new_with_acceptor(acceptor).run(routes));
        fake
    }

    /// The bodies that arrived.
    pub fn seen(&self) -> Vec<Value> {
        self.seen.lock().unwrap().clone()
    }

    pub fn calls(&self) -> usize {
        self.seen.lock().unwrap().len()
    }

    fn next(&self) -> Say {
        let mut script = self.script.lock().unwrap();
        if script.len() > 1 { script.pop_front().unwrap() } else { script.front().cloned().expect("a script") }
    }
}

#[handler]
async fn answer(fake: Data<&Fake>, body: poem::web::Json<Value>) -> Response {
    fake.seen.lock().unwrap().push(body.0);
    let events = |pieces: Vec<String>| stream::iter(pieces.into_iter().map(Ok::<_, std::io::Error>));
    let respond = |body: Body| Response::builder().content_type("text/event-stream").body(body);
    match fake.next() {
        Say::Plain(status, headers, text) => {
            let mut response = Response::builder().status(StatusCode::from_u16(status).unwrap());
            for (name, value) in headers {
                response = response.header(name, value);
            }
            response.body(text)
        }
        Say::Stream(pieces) => respond(Body::from_bytes_stream(events(pieces))),
        Say::Broken(pieces) => {
            let cut = stream::once(async {
                tokio::time::sleep(Duration::from_millis(50)).await;
                Err(std::io::Error::other("cut"))
            });
            respond(Body::from_bytes_stream(events(pieces).chain(cut)))
        }
        Say::Hang(pieces) => respond(Body::from_bytes_stream(events(pieces).chain(stream::pending()))),
    }
}

/// A whole plain answer whose text is `content`.
pub fn plain(content: &str) -> Say {
    plain_with(json!({ "choices": [{ "message": { "content": content }, "finish_reason": "stop" }], "usage": usage() }))
}

pub fn plain_with(mut body: Value) -> Say {
    if body.get("model").is_none() {
        body["model"] = json!("fake-1");
    }
    Say::Plain(200, vec![("content-type", "application/json".into())], body.to_string())
}

pub fn refuse(status: u16, body: &str) -> Say {
    Say::Plain(status, vec![], body.to_owned())
}

pub fn usage() -> Value {
    json!({ "prompt_tokens": 100, "completion_tokens": 20, "total_tokens": 120 })
}

pub fn event(data: &Value) -> String {
    format!("data: {data}\n\n")
}

pub fn delta(text: &str) -> String {
    event(&json!({ "model": "fake-1", "choices": [{ "index": 0, "delta": { "content": text } }], "usage": null }))
}

pub fn finish(reason: &str) -> String {
    event(&json!({ "choices": [{ "index": 0, "delta": {}, "finish_reason": reason }] }))
}

pub fn done() -> String {
    "data: [DONE]\n\n".to_owned()
}

/// An answer in two pieces, with usage, as providers stream it.
pub fn streamed(content: &str) -> Say {
    let half = content.char_indices().nth(content.chars().count() / 2).map_or(0, |(at, _)| at);
    Say::Stream(vec![
        delta(&content[..half]),
        delta(&content[half..]),
        finish("stop"),
        event(&json!({ "choices": [], "usage": usage() })),
        done(),
    ])
}

/// The JSON of one variant.
pub fn variant(platform: &str, text: &str) -> String {
    json!({ platform: { "text": text } }).to_string()
}

pub const CONTENT: &str = "Our new shop opens on Monday at nine, and there is cake for everyone who comes early.";

pub fn request() -> TransformRequest {
    let request = TransformRequest::new(TransformationType::Shorten, CONTENT);
    TransformRequest { platforms: vec![Platform::X], ..request }
}

/// Providers at these addresses, in the order Grok, Together, OpenAI; quick and with one retry.
pub fn transformer(providers: [Option<&Fake>; 3]) -> Transformer {
    Transformer::new(&config(providers)).unwrap()
}

pub fn config(providers: [Option<&Fake>; 3]) -> AiConfig {
    let [grok, together, openai] = providers.map(|fake| {
        fake.map(|fake| AiProviderConfig {
            api_key: "a key for tests".into(),
            base_url: fake.url.parse().unwrap(),
            model: "fake-1".into(),
        })
    });
    AiConfig { grok, together, openai, max_tokens: 500, request_timeout: Duration::from_secs(2), max_retries: 1 }
}

/// What a follower of the job sees.
#[derive(Debug, Clone, PartialEq)]
pub enum Seen {
    Token(String),
    Void(String),
}

#[derive(Debug, Default)]
pub struct Watching(pub Vec<Seen>);

impl Watcher for Watching {
    fn phase(&mut self, _fraction: f64, _phase: &str) {}

    fn token(&mut self, piece: &Piece) {
        self.0.push(Seen::Token(piece.text.clone()));
    }

    fn void(&mut self, why: &str) {
        self.0.push(Seen::Void(why.to_owned()));
    }
}

impl Watching {
    /// What stands on the screen in the end.
    pub fn text(&self) -> String {
        let mut text = String::new();
        for seen in &self.0 {
            match seen {
                Seen::Token(token) => text.push_str(token),
                Seen::Void(_) => text.clear(),
            }
        }
        text
    }

    pub fn voids(&self) -> Vec<&str> {
        let void = |seen: &'_ Seen| matches!(seen, Seen::Void(_));
        self.0
            .iter()
            .filter(|seen| void(seen))
            .map(|seen| match seen {
                Seen::Void(why) | Seen::Token(why) => why.as_str(),
            })
            .collect()
    }
}

/// Books in memory, with a budget if wanted.
#[derive(Default)]
pub struct Books {
    pub reserved: Mutex<Vec<(Uuid, Reservation)>>,
    pub settled: Mutex<Vec<(Uuid, Settlement)>>,
    pub spent_for: Mutex<Option<ProviderName>>,
}

#[async_trait]
impl Billing for Books {
    async fn reserve(&self, reservation: &Reservation) -> Result<Uuid, BillingError> {
        if *self.spent_for.lock().unwrap() == Some(reservation.provider) {
            let subject = format!("provider:{}", reservation.provider);
            let renews_at = "2030-01-01T00:00:00Z".parse().unwrap();
            return Err(BillingError::Spent(BudgetSpent { subject, limit_ticks: 1, renews_at }));
        }
        let id = Uuid::now_v7();
        self.reserved.lock().unwrap().push((id, reservation.clone()));
        Ok(id)
    }

    async fn settle(&self, id: Uuid, settlement: &Settlement) -> Result<(), BillingError> {
        self.settled.lock().unwrap().push((id, settlement.clone()));
        Ok(())
    }
}

impl Books {
    /// Each reservation was settled once.
    pub fn assert_balanced(&self) {
        let mut reserved: Vec<_> = self.reserved.lock().unwrap().iter().map(|(id, _)| *id).collect();
        let mut settled: Vec<_> = self.settled.lock().unwrap().iter().map(|(id, _)| *id).collect();
        reserved.sort_unstable();
        settled.sort_unstable();
        assert_eq!(reserved, settled);
    }

    pub fn classes(&self) -> Vec<&'static str> {
        self.settled.lock().unwrap().iter().map(|(_, settlement)| settlement.class).collect()
    }
}

/// One transform from start to end.
pub async fn run(
    transformer: &Transformer,
    request: &TransformRequest,
) -> (Result<TransformOutput, TransformError>, Watching, Arc<Books>) {
    let (mut watching, books) = (Watching::default(), Arc::new(Books::default()));
    let result = run_with(transformer, request, &mut watching, &books).await;
    books.assert_balanced();
    (result, watching, books)
}

pub async fn run_with(
    transformer: &Transformer,
    request: &TransformRequest,
    watching: &mut Watching,
    books: &Arc<Books>,
) -> Result<TransformOutput, TransformError> {
    let order = Order {
        tenant: TenantId::new(),
        billing: Arc::clone(books) as Arc<dyn Billing>,
        deadline: Instant::now() + Duration::from_secs(20),
        watcher: watching,
    };
    transformer.run(request, order).await
}
