//! Extensions: asked in their order, and what follows when they fail.

use super::*;

fn with_extensions(policy: Value) -> Scene {
    let mut scene = Scene::new();
    let mut document = json!({"version": "1.0", "providers": [{"name": "a", "weight": 100}]});
    for (key, value) in policy.as_object().unwrap() {
        document[key] = value.clone();
    }
    let put = json!({"tenant_id": "t", "policy_id": "p", "policy": document});
    assert_eq!(scene.admin("upsert_policy", put)["ok"], true);
    scene
}

impl Scene {
    fn begin(&mut self, id: &str) {
        self.published.clear();
        let body =
            json!({"tenant_id": "t", "policy_id": "p", "request_id": id, "payload": {"text": "hello"}});
        self.send(DECIDE, 1, &body);
        assert!(self.published.is_empty(), "it waits for its extensions: {:?}", self.published);
    }

    fn answer(&mut self, body: &Value) -> String {
        let (token, subject, _) = self.asked.last().unwrap().clone();
        let payload = body.to_string();
        self.engine.handle(self.now, Input::Answer { token, headers: b"", payload: payload.as_bytes() });
        self.collect();
        subject
    }
}

#[test]
fn extensions_are_asked_in_order_and_may_change_and_refuse() {
    let mut scene = with_extensions(json!({"pre": [{"id": "clean"}],
        "validators": [{"id": "pii"}], "post": [{"id": "mark"}]}));
    scene.begin("1");
    let same_subject = scene.answer(&json!({"payload": {"text": "clean"}, "metadata": {"lang": "en"}}));
    assert_eq!(same_subject, "beamline.ext.pre.clean.v1");
    assert_eq!(scene.asked[1].2["payload"], json!({"text": "clean"}));
    assert_eq!(scene.answer(&json!({"status": "ok"})), "beamline.ext.validate.pii.v1");
    assert_eq!(scene.answer(&json!({"metadata": {"marked": true}})), "beamline.ext.post.mark.v1");
    let reply = scene.replied();
    assert_eq!((&reply["metadata"]["marked"], &reply["metadata"]["lang"]), (&json!(true), &json!("en")));

    scene.begin("2");
    scene.answer(&json!({}));
    scene.answer(&json!({"status": "reject", "reason": "has a name in it"}));
    assert_eq!(code(&scene.replied()), "validator_blocked");
    let health = scene.admin("get_extension_health", json!({}));
    assert_eq!(health["health"]["pii"]["status"], "healthy");
}

#[test]
fn extensions_that_fail_are_told_by_the_contracts_codes() {
    let mut scene =
        with_extensions(json!({"pre": [{"id": "x", "mode": "required", "retry": 1, "timeout_ms": 100}]}));
    scene.begin("1");
    scene.wait(100);
    assert_eq!(scene.asked.len(), 2, "tried again");
    scene.wait(100);
    assert_eq!(code(&scene.replied()), "extension_timeout");
    scene.begin("2");
    for _ in 0..2 {
        let token = scene.asked.last().unwrap().0;
        scene.engine.handle(scene.now, Input::Unheard { token });
        scene.collect();
    }
    assert_eq!(code(&scene.replied()), "extension_not_found");
    let registered = json!({"id": "x", "extension": {"type": "pre", "subject": "my.pre"}});
    assert_eq!(scene.admin("upsert_extension", registered)["ok"], true);
    scene.begin("3");
    assert_eq!(scene.answer(&json!({"error": "broken"})), "my.pre");
    // Too many failures: it rests, and nobody waits for it.
    assert_eq!(code(&scene.replied()), "extension_unavailable");
    scene.published.clear();
    scene.send(DECIDE, 1, &json!({"tenant_id": "t", "policy_id": "p", "request_id": "4"}));
    assert_eq!(code(&scene.replied()), "extension_unavailable");

    let mut scene = with_extensions(json!({"pre": [{"id": "x", "mode": "required"}]}));
    scene.begin("1");
    scene.answer(&json!({"error": "broken"}));
    assert_eq!(code(&scene.replied()), "extension_error");
    let mut scene = with_extensions(json!({"post": [{"id": "y", "mode": "required"}]}));
    scene.begin("1");
    scene.answer(&json!("no object"));
    assert_eq!(code(&scene.replied()), "post_processor_failed");
    let mut scene =
        with_extensions(json!({"post": [{"id": "y"}], "validators": [{"id": "v", "on_fail": "warn"}]}));
    scene.begin("1");
    scene.answer(&json!({"status": "reject", "reason": "odd"}));
    scene.answer(&json!("no object"));
    let reply = scene.replied();
    assert_eq!((&reply["ok"], &reply["metadata"]["warnings"][0]["validator"]), (&json!(true), &json!("v")));
}

#[test]
fn the_same_request_waits_with_the_first() {
    let mut scene = with_extensions(json!({"pre": [{"id": "x"}]}));
    scene.begin("1");
    scene.begin("1");
    assert_eq!(scene.asked.len(), 1);
    scene.answer(&json!({}));
    let replies: Vec<&Value> = scene.published.iter().map(|(_, body)| body).collect();
    assert_eq!((replies.len(), replies[0]), (2, replies[1]));
}
