//! The HTTP API: the last check, the list, the reviews; and who may not.

use serde_json::{Value, json};

use crate::support::broker::Broker;
use crate::support::kafka::Isolation;
use crate::support::service::{Service, request};
use crate::support::world::{World, phone};

/// A caller of the API, with or without a token.
struct Caller<'s> {
    service: &'s Service,
    token: Option<&'static str>,
}

impl Caller<'_> {
    fn sends(&self, method: &str, path: &str, headers: &[(&str, &str)], body: &str) -> (u16, Value) {
        let bearer = self.token.map(|token| format!("Bearer {token}"));
        let mut all = vec![("Content-Type", "application/json")];
        all.extend(bearer.as_deref().map(|bearer| ("Authorization", bearer)));
        all.extend(headers);
        let (status, text) = request(self.service.address(), method, path, &all, body).expect("an answer");
        (status, serde_json::from_str(&text).unwrap_or_else(|error| panic!("{status} {error}: {text}")))
    }

    fn gets(&self, path: &str) -> (u16, Value) {
        self.sends("GET", path, &[], "")
    }

    fn posts(&self, path: &str, body: Value) -> (u16, Value) {
        self.sends("POST", path, &[], &body.to_string())
    }
}

#[test]
fn a_sender_asks_at_the_door_and_an_entry_counts_once_it_is_answered() {
    let Some(broker) = Broker::shared() else { return };
    let world = World::new(broker, "api");
    let mut service = world.serving("run", "a").spawn();
    service.ready();
    let api = Caller { service: &service, token: None };
    let check = |to: Value| api.posts("/v1/check", json!({ "business": "acme", "channel": "whatsapp", "to": to, "category": "marketing" }));
    let (ada, bob) = (phone(1), phone(2));

    let (status, answer) = check(json!([ada, bob]));
    assert_eq!((status, &answer["results"][0]["decision"], &answer["results"][0]["reason"]), (200, &json!("allowed"), &json!("no-opt-out")));
    let body = json!({ "business": "acme", "channel": "whatsapp", "identity": ada, "subject": "marketing", "reason": "rang us" });
    let (status, entered) = api.posts("/v1/opt-outs", body);
    assert_eq!((status, &entered["changed"], &entered["marketing"]), (201, &json!(true), &json!("suppressed")), "{entered}");
    let (_, answer) = check(json!([ada, bob, ["bsuid:US.1", ada]]));
    let results = &answer["results"];
    assert_eq!((&results[0]["decision"], &results[0]["cause"]), (&json!("suppressed"), &entered["position"]), "{answer}");
    assert_eq!((&results[1]["decision"], &results[1]["cause"]), (&json!("allowed"), &Value::Null));
    assert_eq!(results[2]["decision"], json!("suppressed"), "one of several identities is enough");
    assert!(answer["as_of"].as_str().is_some_and(|as_of| as_of.starts_with("0@") && as_of.contains(",2@")), "{answer}");
    let (_, exempt) = api.posts("/v1/check", json!({ "business": "acme", "to": [ada], "category": "utility" }));
    assert_eq!(exempt["results"][0]["reason"], json!("exempt-category"));

    // What people write counts as well, at level inbound before detect has read it.
    world.says(&bob, "STOP");
    let (_, answer) = api.posts("/v1/check", json!({ "business": "acme", "to": [bob], "fence": "inbound" }));
    assert_eq!(answer["results"][0]["decision"], json!("suppressed"), "{answer}");

    let path = format!("/v1/opt-outs/acme/whatsapp/{}", ada.replace('+', "%2B"));
    let (status, known) = api.gets(&path);
    assert_eq!((status, &known["standing"][0]["state"], &known["standing"][0]["reason"]), (200, &json!("opted-out"), &json!("rang us")));
    assert_eq!(known["history"][0]["actor"], json!("local"), "{known}");
    assert_eq!(api.sends("DELETE", &path, &[], "").0, 400, "an opt-in without proof");
    let early = api.sends("DELETE", &format!("{path}?proof=letter&occurred_at=2020-01-01T00:00:00Z"), &[], "");
    assert_eq!(early.0, 409, "{}", early.1);
    let (status, back) = api.sends("DELETE", &format!("{path}?proof=letter%20of%203%20May"), &[], "");
    assert_eq!((status, &back["state"], &back["marketing"]), (201, &json!("opted-in"), &json!("allowed")));
    let (_, answer) = check(json!([ada]));
    assert_eq!(answer["results"][0]["reason"], json!("opted-in-again"));
    let again = api.sends("DELETE", &path, &[], &json!({ "proof": "rang again", "reason": "asked" }).to_string());
    assert_eq!((again.0, &again.1["changed"]), (201, &json!(false)), "grounds may stand in a body");
    assert_eq!(api.sends("DELETE", &path, &[], &json!({ "prof": "x" }).to_string()).0, 400);
    assert_eq!(api.gets(&format!("/v1/opt-outs/acme/whatsapp/{}", phone(9).replace('+', "%2B"))).0, 404);

    // Page by page.
    for n in 10..15 {
        let body = json!({ "business": "acme", "channel": "sms", "identity": phone(n), "occurred_at": 1_793_527_200 });
        assert_eq!(api.posts("/v1/opt-outs", body).0, 201);
    }
    let (mut rows, mut after) = (Vec::new(), String::new());
    loop {
        let (status, page) = api.gets(&format!("/v1/opt-outs?channel=sms&limit=2{after}"));
        assert_eq!(status, 200, "{page}");
        let found = page["rows"].as_array().expect("rows");
        assert!(found.len() <= 2);
        rows.extend(found.iter().map(|row| row["identity"].as_str().expect("an identity").to_owned()));
        match page["next"].as_str() {
            Some(next) => after = format!("&after={next}"),
            None => break,
        }
    }
    rows.sort_unstable();
    assert_eq!(rows, (10..15).map(|n| format!("phone:{}", phone(n))).collect::<Vec<_>>());
    assert_eq!(api.gets("/v1/opt-outs?state=opted-in").1["rows"].as_array().map(Vec::len), Some(1));
    assert!(service.metric("stopgate_checks_total", &["decision=\"suppressed\""]) >= 3.0);

    // A request that is repeated under its key has been asked once.
    let api = Caller { service: &service, token: None };
    let body = json!({ "business": "acme", "identity": phone(20) }).to_string();
    let key = [("Idempotency-Key", "once")];
    let first = api.sends("POST", "/v1/opt-outs", &key, &body);
    let again = api.sends("POST", "/v1/opt-outs", &key, &body);
    assert_eq!(first, again);
    let other = json!({ "business": "acme", "identity": phone(21) }).to_string();
    assert_eq!(api.sends("POST", "/v1/opt-outs", &key, &other).0, 422);
    let story = world.verb("explain").arg("--recipient", &phone(20)).finish().expect_code(0).stdout;
    assert_eq!(story.matches("recorded").count(), 1, "{story}");
}

#[test]
fn bad_requests_are_told_what_is_wrong_and_where_but_never_with_their_contents() {
    let Some(broker) = Broker::shared() else { return };
    let world = World::new(broker, "api-bad").tables("[[business]]\nname = \"acme\"\n");
    let mut service = world.serving("filter", "a").spawn();
    service.ready();
    let api = Caller { service: &service, token: None };
    let check = |body: Value| api.posts("/v1/check", body);
    let secret = "12ab-secret";
    for (body, pointer) in [
        (json!({ "business": "acme", "to": [phone(1), secret] }), "/to/1"),
        (json!({ "business": "globex", "to": [phone(1)] }), "/business"),
        (json!({ "business": "acme", "channel": "", "to": [phone(1)] }), "/channel"),
        (json!({ "business": "acme", "to": vec![phone(1); 1001] }), "/to"),
    ] {
        let (status, problem) = check(body);
        assert_eq!((status, problem["errors"][0]["pointer"].as_str()), (400, Some(pointer)), "{problem}");
        assert!(!problem.to_string().contains(secret));
    }
    for (body, says) in [
        (json!({ "business": "acme" }), "missing field `to`"),
        (json!({ "business": "acme", "to": [], "colour": secret }), "unknown field `colour`"),
        (json!({ "business": 7, "to": [secret] }), "not the JSON"),
    ] {
        let (status, problem) = check(body);
        assert_eq!((status, &problem["status"]), (400, &json!(400)));
        assert!(problem["detail"].as_str().is_some_and(|detail| detail.contains(says)) && !problem.to_string().contains(secret), "{problem}");
    }
    for (identity, subject, at, pointer) in [
        (secret, "marketing", "2026-01-01T00:00:00Z", "/identity"),
        (&*phone(1), "everything", "2026-01-01T00:00:00Z", "/subject"),
        (&*phone(1), "marketing", "soon", "/occurred_at"),
        (&*phone(1), "marketing", "2999-01-01T00:00:00Z", "/occurred_at"),
    ] {
        let body = json!({ "business": "acme", "channel": "sms", "identity": identity, "subject": subject, "occurred_at": at });
        let (status, problem) = api.posts("/v1/opt-outs", body);
        assert_eq!((status, problem["errors"][0]["pointer"].as_str()), (400, Some(pointer)), "{problem}");
        assert!(!problem.to_string().contains(secret));
    }
    assert_eq!(api.sends("POST", "/v1/check", &[], "{").0, 400);
    assert_eq!(api.sends("POST", "/v1/check", &[("Content-Type", "text/plain")], "{}").0, 400, "the last header of a name counts");
    assert_eq!(api.sends("PUT", "/v1/check", &[], "{}").0, 405);
    assert_eq!(api.gets("/v1/nothing").0, 404);
    assert_eq!(api.gets("/v1/opt-outs?limit=0").0, 400);
    assert_eq!(api.gets("/v1/opt-outs?colour=red").0, 400);
    let (status, problem) = api.sends("POST", "/v1/check", &[], &" ".repeat(100 << 20));
    assert_eq!(status, 413, "{problem}");
    assert_eq!(service.get("/livez").expect("an answer").0, 200);
}

#[test]
fn tokens_have_names_and_roles_and_elsewhere_nobody_is_served_without_one() {
    let Some(broker) = Broker::shared() else { return };
    let world = World::new(broker, "api-tokens").tables(&tokens());
    let mut service = world.serving("filter", "a").spawn();
    service.ready();
    let as_whom = |token: Option<&'static str>| Caller { service: &service, token };
    let body = json!({ "business": "acme", "to": [phone(1)] });
    assert_eq!(as_whom(None).posts("/v1/check", body.clone()).0, 401);
    assert_eq!(as_whom(Some("wrong")).posts("/v1/check", body.clone()).0, 401);
    assert_eq!(as_whom(Some("read secret")).posts("/v1/check", body).0, 200);
    let entry = json!({ "business": "acme", "identity": phone(1) });
    assert_eq!(as_whom(Some("read secret")).posts("/v1/opt-outs", entry.clone()).0, 403);
    assert_eq!(as_whom(Some("write secret")).posts("/v1/opt-outs", entry).0, 201);
    let (_, known) = as_whom(Some("read secret")).gets(&format!("/v1/opt-outs/acme/whatsapp/{}", phone(1).replace('+', "%2B")));
    assert_eq!(known["history"][0]["actor"], json!("desk"), "the token's name is the actor: {known}");
    let (status, _) = request(service.address(), "GET", "/metrics", &[], "").expect("an answer");
    assert_eq!(status, 200, "probes need no token");
    let shown = world.verb("check").finish().stdout;
    assert!(shown.contains("desk") && !shown.contains(SHA256_OF_WRITE_SECRET), "{shown}");

    let bad = World::new(broker, "api-bad-token").tables("[[token]]\nname = \"x\"\nsha256 = \"secret itself\"\n");
    let refused = bad.verb("check").finish().expect_code(2);
    assert!(refused.stderr.contains("64 hexadecimal digits") && !refused.text().contains("secret itself"), "{}", refused.text());
}

/// Of `write secret`.
const SHA256_OF_WRITE_SECRET: &str = "514bd78a169e482710da1a29ab444ea69190516c7bb0a18a5ff8935c16fa43d5";
/// Of `read secret`.
const SHA256_OF_READ_SECRET: &str = "6f7861f2a9e63b1ce49f8754d4b103b07e78604f17c59c9e828823b67f0048e8";

fn tokens() -> String {
    format!(
        "[[token]]\nname = \"campaigns\"\nsha256 = \"{SHA256_OF_READ_SECRET}\"\n\
         [[token]]\nname = \"desk\"\nrole = \"write\"\nsha256 = \"{SHA256_OF_WRITE_SECRET}\"\n"
    )
}

#[test]
fn a_message_that_waits_for_a_verdict_is_lifted_or_becomes_an_opt_out() {
    let Some(broker) = Broker::shared() else { return };
    let world = World::new(broker, "api-reviews");
    let mut service = world.serving("run", "a").spawn();
    service.ready();
    let api = Caller { service: &service, token: None };
    let (ada, bob, eve) = (phone(1), phone(2), phone(3));
    for person in [&ada, &bob, &eve] {
        world.says(person, AMBIGUOUS);
    }
    world.kafka.reader(&world.names.reviews, Isolation::Committed).at_least(3);
    let (_, waiting) = api.gets("/v1/reviews");
    let reviews = waiting["reviews"].as_array().expect("reviews");
    assert_eq!(reviews.len(), 3, "{waiting}");
    let id_of = |person: &str| {
        let of = |review: &&Value| review["from"][0] == json!(format!("phone:{person}"));
        reviews.iter().find(of).and_then(|review| review["id"].as_str()).expect("a review").to_owned()
    };
    assert_eq!((&reviews[0]["text"], &reviews[0]["overdue"]), (&json!(AMBIGUOUS), &json!(false)));
    let reason = |person: &str| {
        let (_, answer) = api.posts("/v1/check", json!({ "business": "acme", "to": [person] }));
        answer["results"][0]["reason"].as_str().expect("a reason").to_owned()
    };
    assert_eq!(reason(&ada), "under-review");

    let (status, judged) = api.posts(&format!("/v1/reviews/{}", id_of(&ada)), json!({ "verdict": "lift", "reason": "meant the parcel" }));
    assert_eq!(status, 200, "{judged}");
    assert_eq!(reason(&ada), "opted-in-again");
    let (status, judged) = api.posts(&format!("/v1/reviews/{}", id_of(&bob)), json!({ "verdict": "opt-out" }));
    assert_eq!((status, &judged["entered"][0]["state"]), (200, &json!("opted-out")), "{judged}");
    assert_eq!(reason(&bob), "opted-out");
    assert_eq!(api.posts(&format!("/v1/reviews/{}", id_of(&bob)), json!({ "verdict": "lift" })).0, 404, "it was judged");
    assert_eq!(api.posts("/v1/reviews/none", json!({ "verdict": "maybe" })).0, 400);

    let listed = world.verb("review list").word("--json").finish().expect_code(0).stdout;
    assert!(listed.lines().count() == 1 && listed.contains(&eve), "{listed}");
    world.verb("review lift").word(&id_of(&eve)).arg("--actor", "grace").finish().expect_code(0);
    assert_eq!(world.verb("review list").finish().expect_code(0).stdout, "");
    // A later message of the same kind waits again.
    world.says(&eve, AMBIGUOUS);
    world.kafka.reader(&world.names.reviews, Isolation::Committed).at_least(4);
    assert_eq!(api.gets("/v1/reviews").1["reviews"].as_array().map(Vec::len), Some(1));
    assert_eq!(reason(&eve), "under-review");
    // A person who speaks for themselves is not judged.
    world.says(&eve, "STOP");
    let opt_outs = world.kafka.reader(&world.names.opt_outs, Isolation::Committed);
    opt_outs.find("the opt-out", |record| record.key_text() == format!("acme|whatsapp|phone:{eve}|marketing"));
    assert_eq!(api.gets("/v1/reviews").1["reviews"], json!([]));
    world.verb("review opt-out").word("nobody's").finish().expect_code(1);
}

const AMBIGUOUS: &str = "too many messages";

#[test]
fn questions_that_read_topics_wait_for_their_turn_and_are_told_to_come_again_when_there_are_too_many() {
    let Some(broker) = Broker::shared() else { return };
    let world = World::new(broker, "apiturns");
    let mut service = world.serving("run", "a").spawn();
    service.ready();
    let api = Caller { service: &service, token: None };
    let entered = api.posts("/v1/opt-outs", json!({ "business": "acme", "channel": "whatsapp", "identity": phone(1) }));
    assert_eq!(entered.0, 201, "{}", entered.1);
    let statuses = |callers: usize| -> Vec<u16> {
        let api = &api;
        std::thread::scope(|scope| {
            let asked: Vec<_> = (0..callers).map(|_| scope.spawn(move || api.gets("/v1/opt-outs/recent").0)).collect();
            asked.into_iter().map(|answer| answer.join().expect("an answer")).collect()
        })
    };
    // A console that looks at acts and reviews while somebody else's question is read: nobody is sent away.
    assert_eq!(statuses(10), [200; 10]);
    let crowd = statuses(120);
    assert!(crowd.iter().all(|status| [200, 429].contains(status)), "{crowd:?}");
    assert!(crowd.contains(&200), "{crowd:?}");
}

#[test]
fn the_description_names_every_route_and_nothing_else() {
    let Some(broker) = Broker::shared() else { return };
    let world = World::new(broker, "api-description");
    let mut service = world.serving("filter", "a").spawn();
    service.ready();
    let api = Caller { service: &service, token: None };
    let (status, description) = api.gets("/v1/openapi.json");
    assert_eq!(status, 200);
    let paths = description["paths"].as_object().expect("paths");
    for (path, operations) in paths {
        let filled = path.replace("{business}", "acme").replace("{channel}", "sms").replace("{identity}", "ext:1").replace("{id}", "x");
        for method in ["get", "post", "put", "delete"] {
            let (status, _) = api.sends(&method.to_uppercase(), &filled, &[], "");
            assert_eq!(status == 405, operations.get(method).is_none(), "{method} {path}: {status}");
        }
    }
    // Every reference leads somewhere.
    let text = description.to_string();
    for reference in text.split("\"$ref\":\"#").skip(1) {
        let pointer = reference.split('"').next().expect("a pointer");
        assert!(description.pointer(pointer).is_some(), "{pointer}");
    }
}

/// A client made of the description alone: what it sends and what it expects stands there.
struct Made<'d> {
    description: &'d Value,
}

impl<'d> Made<'d> {
    fn resolved(&self, schema: &'d Value) -> &'d Value {
        match schema["$ref"].as_str() {
            Some(reference) => self.description.pointer(reference.trim_start_matches('#')).unwrap_or_else(|| panic!("{reference}")),
            None => schema,
        }
    }

    /// A value of a schema.
    fn sample(&self, schema: &'d Value) -> Value {
        let schema = self.resolved(schema);
        let first = |list: &'d Value| list.as_array().and_then(|list| list.first());
        if let Some(known) = schema.get("example").or_else(|| schema.get("default")).or_else(|| first(&schema["enum"])) {
            return known.clone();
        }
        if let Some(one) = first(&schema["oneOf"]) {
            return self.sample(one);
        }
        match (schema["type"].as_str(), schema["format"].as_str()) {
            (Some("object"), _) => {
                let properties = schema["properties"].as_object().into_iter().flatten();
                properties.map(|(name, schema)| (name.clone(), self.sample(schema))).collect()
            }
            (Some("array"), _) => json!([self.sample(&schema["items"])]),
            (Some("integer"), _) => json!(1),
            (Some("boolean"), _) => json!(true),
            (_, Some("date-time")) => json!("2026-01-01T00:00:00Z"),
            _ => json!("acme"),
        }
    }

    /// What is wrong with a value by a schema.
    fn faults(&self, schema: &'d Value, value: &Value) -> Vec<String> {
        let schema = self.resolved(schema);
        if let Some(choices) = schema["oneOf"].as_array() {
            let fits = choices.iter().any(|choice| self.faults(choice, value).is_empty());
            return if fits { Vec::new() } else { vec![format!("{value} is none of {choices:?}")] };
        }
        let types: Vec<&str> = match &schema["type"] {
            Value::Array(types) => types.iter().filter_map(Value::as_str).collect(),
            one => one.as_str().into_iter().collect(),
        };
        let is = match value {
            Value::Null => "null",
            Value::Bool(_) => "boolean",
            Value::Number(_) => "integer",
            Value::String(_) => "string",
            Value::Array(_) => "array",
            Value::Object(_) => "object",
        };
        let mut faults = Vec::new();
        if !types.is_empty() && !types.contains(&is) {
            faults.push(format!("{value} is no {types:?}"));
        }
        if schema["enum"].as_array().is_some_and(|known| !known.contains(value)) {
            faults.push(format!("{value} is not known"));
        }
        for name in schema["required"].as_array().into_iter().flatten().filter_map(Value::as_str) {
            if value.get(name).is_none() {
                faults.push(format!("{name} is missing in {value}"));
            }
        }
        for (name, value) in value.as_object().into_iter().flatten() {
            match (schema["properties"].get(name), schema.get("additionalProperties")) {
                (Some(schema), _) => faults.extend(self.faults(schema, value)),
                (None, Some(schema)) if schema.is_object() => faults.extend(self.faults(schema, value)),
                (None, _) if schema.get("properties").is_some() => faults.push(format!("{name} is not described")),
                (None, _) => {}
            }
        }
        faults.extend(value.as_array().into_iter().flatten().flat_map(|value| self.faults(&schema["items"], value)));
        faults
    }
}

#[test]
fn clients_that_are_not_ours_find_what_the_description_says() {
    let Some(broker) = Broker::shared() else { return };
    let world = World::new(broker, "api-clients");
    let mut service = world.serving("run", "a").spawn();
    service.ready();
    world.says(&phone(1), "too many messages");
    world.kafka.reader(&world.names.reviews, Isolation::Committed).at_least(1);
    let api = Caller { service: &service, token: None };
    let (_, description) = api.gets("/v1/openapi.json");
    let made = Made { description: &description };
    let mut asked = 0;
    for (path, operations) in description["paths"].as_object().expect("paths") {
        for (method, operation) in operations.as_object().expect("operations") {
            let mut filled = path.clone();
            let mut query = Vec::new();
            for parameter in operation["parameters"].as_array().into_iter().flatten() {
                let (name, value) = (parameter["name"].as_str().expect("a name"), made.sample(&parameter["schema"]));
                let text = value.as_str().map_or_else(|| value.to_string(), str::to_owned).replace('+', "%2B").replace(' ', "%20");
                match (parameter["in"].as_str(), parameter["required"].as_bool()) {
                    (Some("path"), _) => filled = filled.replace(&format!("{{{name}}}"), &text),
                    (Some("query"), Some(true)) => query.push(format!("{name}={text}")),
                    _ => {}
                }
            }
            let schema = &operation["requestBody"]["content"]["application/json"]["schema"];
            let body = if schema.is_null() { String::new() } else { made.sample(schema).to_string() };
            let target = if query.is_empty() { filled } else { format!("{filled}?{}", query.join("&")) };
            let (status, answer) = api.sends(&method.to_uppercase(), &target, &[], &body);
            let response = made.resolved(&operation["responses"][status.to_string()]);
            assert!(!response.is_null(), "{method} {target} {body}: {status} is not described: {answer}");
            let content = response["content"].as_object().and_then(|content| content.values().next()).expect("content");
            let faults = made.faults(&content["schema"], &answer);
            assert!(faults.is_empty(), "{method} {target} {body}: {status} {answer}: {faults:?}");
            assert!(status < 300 || status == 404, "{method} {target} {body}: {status} {answer}");
            asked += 1;
        }
    }
    assert!(asked >= 11, "{asked} operations");

    let url = format!("http://{}/v1/check", service.address());
    let body = json!({ "business": "acme", "to": [phone(2)] }).to_string();
    let curl = std::process::Command::new("curl").args(["-sS", "-m", "10", "-H", "Content-Type: application/json", "-d", &body, &url]).output();
    let Ok(curl) = curl else { return }; // a machine without it has the rest of this test
    let answer: Value =
        serde_json::from_slice(&curl.stdout).unwrap_or_else(|error| panic!("{error}: {}", String::from_utf8_lossy(&curl.stderr)));
    assert_eq!(answer["results"][0]["decision"], json!("allowed"));
}
