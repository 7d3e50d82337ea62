// Reads objects as a JSON list from standard input; prints what is wrong with each, or "", as a JSON list.
// The packages' validators pass over a field that they do not know. They ask each object for every field that they
// do know, so a field that they never ask for is unknown. An object that they ask for nothing, or iterate over, is
// free-form.
const PACKAGES = {
  "gateway.envoyproxy.io": "envoy-gateway",
  "gateway.networking.k8s.io": "gateway-api",
  "networking.istio.io": "istio",
  "monitoring.coreos.com": "prometheus-operator",
  "keda.sh": "keda",
};

function watched(value, path, unknown) {
  if (value === null || typeof value !== "object") return value;
  if (Array.isArray(value)) return value.map((each, at) => watched(each, `${path}[${at}]`, unknown));
  const asked = new Set();
  const keys = Object.keys(value);
  let free = false;
  unknown.push(() => (free || !asked.size ? [] : keys.filter((key) => !asked.has(key)).map((key) => `${path}.${key}`)));
  return new Proxy(Object.fromEntries(keys.map((key) => [key, watched(value[key], `${path}.${key}`, unknown)])), {
    get: (target, key) => (asked.add(key), target[key]),
    ownKeys: (target) => ((free = true), Reflect.ownKeys(target)),
  });
}

let text = "";
for await (const chunk of process.stdin) text += chunk;
const found = [];
for (const { apiVersion, kind, ...rest } of JSON.parse(text)) {
  const [group] = apiVersion.split("/");
  const module = await import(`@kubernetes-models/${PACKAGES[group]}/${apiVersion}/${kind}`);
  const unknown = [];
  const model = new module[kind](rest);
  model.spec = watched(model.spec, "spec", unknown);
  try {
    model.validate();
    const paths = unknown.flatMap((each) => each());
    found.push(paths.length ? `unknown: ${paths.join(", ")}` : "");
  } catch (error) {
    found.push(String(error));
  }
}
console.log(JSON.stringify(found));
