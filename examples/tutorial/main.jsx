// The page of the chat in docs/tutorial.
import { StrictMode, useEffect, useState } from "react";
import { createRoot } from "react-dom/client";
import { Gateway } from "websocket-gateway-client";
import { useTopic } from "../react/useTopic.js";

const ROOM = "lobby";

async function call(method, path, body) {
  const answer = await fetch(path, { method, body: JSON.stringify(body), headers: { "Content-Type": "application/json" } });
  if (!answer.ok) throw new Error((await answer.json()).detail);
  return answer;
}

// Chapter 4: each attempt takes the next node.
const sockets = document.body.dataset.sockets.split(" ");
let attempt = Number(new URLSearchParams(location.search).get("node") ?? 0);
const gateway = new Gateway(() => sockets[attempt++ % sockets.length], {
  getToken: async () => (await call("GET", "/gateway-token")).text(),
});

function Login({ onLogin }) {
  async function submit(event) {
    event.preventDefault();
    await call("POST", "/login", { name: event.target.elements.name.value });
    await call("PUT", `/rooms/${ROOM}/members/me`, {});
    onLogin();
  }
  return (
    <form onSubmit={submit}>
      <input name="name" aria-label="Your name" />
      <button>Log in</button>
    </form>
  );
}

function Room() {
  const { messages, members, state, gaps } = useTopic(gateway, `room:${ROOM}`);
  const [text, setText] = useState("");
  useEffect(() => {
    gateway.connect().catch((error) => console.warn(error.message));
  }, []);

  async function submit(event) {
    event.preventDefault();
    await call("POST", `/rooms/${ROOM}/messages`, { text });
    setText("");
  }
  return (
    <section data-state={state}>
      <p>{members === null ? state : `${members} here`}</p>
      {gaps > 0 && <p role="alert">Messages may be missing.</p>}
      <ol>
        {messages.map(({ data, epoch, offset }) => <li key={`${epoch}.${offset}`}>{data.user}: {data.text}</li>)}
      </ol>
      <form onSubmit={submit}>
        <input value={text} onChange={(event) => setText(event.target.value)} aria-label="Message" />
        <button>Send</button>
      </form>
    </section>
  );
}

function Chat() {
  const [loggedIn, setLoggedIn] = useState(false);
  return loggedIn ? <Room /> : <Login onLogin={() => setLoggedIn(true)} />;
}

createRoot(document.getElementById("app")).render(<StrictMode><Chat /></StrictMode>);
