// Reads objects as a JSON list from standard input; prints what is wrong with each, or "", as a JSON list.
const PACKAGES = {
  "gateway.networking.k8s.io": "gateway-api",
  "networking.istio.io": "istio",
  "monitoring.coreos.com": "prometheus-operator",
  "keda.sh": "keda",
};
let text = "";
for await (const chunk of process.stdin) text += chunk;
const found = [];
for (const { apiVersion, kind, ...rest } of JSON.parse(text)) {
  const [group] = apiVersion.split("/");
  const module = await import(`@kubernetes-models/${PACKAGES[group]}/${apiVersion}/${kind}`);
  try {
    new module[kind](rest).validate();
    found.push("");
  } catch (error) {
    found.push(String(error));
  }
}
console.log(JSON.stringify(found));
