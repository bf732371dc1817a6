"""How a report looks, and the few lines that let a pointer read its curves. Both are part of the page: it needs no other file."""

STYLE = """
:root{color-scheme:light dark;--bg:#f6f7f9;--card:#fff;--line:#e3e6ea;--grid:#eceef1;--text:#1b2027;--dim:#68707c;
--c1:#2563eb;--c2:#e8590c;--c3:#0c9b6b;--c4:#9333ea;--c5:#0891b2;--c6:#d6336c;--c7:#5c940d;--c8:#b08900;--good:#12805c;--warn:#b45309;--bad:#d92d20}
@media(prefers-color-scheme:dark){:root{--bg:#0f1217;--card:#171b22;--line:#2a303a;--grid:#232933;--text:#e6e9ee;--dim:#949dab;
--c1:#6ea8fe;--c2:#ff9f5a;--c3:#4ade9f;--c4:#c792ff;--c5:#4dd0e8;--c6:#ff7eb0;--c7:#a9d86e;--c8:#f0c755;--good:#4ade9f;--warn:#ffb454;--bad:#ff7b72}}
*{box-sizing:border-box}
body{margin:0;background:var(--bg);color:var(--text);font:14px/1.5 system-ui,-apple-system,"Segoe UI",Roboto,"Helvetica Neue",Arial,sans-serif;
font-variant-numeric:tabular-nums}
main{max-width:1180px;margin:0 auto;padding:28px 20px 40px}
h1{font-size:26px;line-height:1.25;margin:0;overflow-wrap:anywhere}
h2{font-size:16px;margin:34px 0 12px}
p{margin:6px 0}
.eyebrow,.dim{color:var(--dim)}
.eyebrow{font-size:12px;letter-spacing:.06em;text-transform:uppercase}
.head{display:flex;flex-wrap:wrap;gap:6px 12px;align-items:center}
.pill{border-radius:99px;padding:2px 11px;font-weight:600;font-size:13px;color:var(--p);border:1.5px solid var(--p);white-space:nowrap}
.good{--p:var(--good)}.warn{--p:var(--warn)}.wrong{--p:var(--bad)}.calm{--p:var(--c1)}
.sentence{color:var(--dim);max-width:90ch;overflow-wrap:anywhere}
.tiles{display:grid;grid-template-columns:repeat(var(--n),minmax(0,1fr));gap:10px;margin-top:18px}
@media(max-width:1000px){.tiles{grid-template-columns:repeat(auto-fit,minmax(130px,1fr))}}
.tile,.card,.chart{background:var(--card);border:1px solid var(--line);border-radius:10px}
.tile{padding:9px 12px 10px;min-width:0}
.tile span{display:block;color:var(--dim);font-size:12px}
.tile b{display:block;font-size:18px;line-height:1.35;font-weight:650;overflow-wrap:anywhere}
.tile small{color:var(--dim);font-size:12px;overflow-wrap:anywhere}
.charts{display:grid;grid-template-columns:repeat(auto-fill,minmax(min(100%,350px),1fr));gap:12px}
.chart{margin:0;padding:12px 16px 10px 8px;display:grid;grid-template-columns:64px minmax(0,1fr);grid-row:span 4;grid-template-rows:subgrid;row-gap:0}
.chart.wide{grid-column:1/-1}
figcaption{grid-column:1/-1;padding:0 0 14px 8px}
figcaption>b{display:block}.wide figcaption>b{display:inline-block;margin-right:16px}
.legend{color:var(--dim);font-size:12px;display:flex;flex-wrap:wrap;gap:0 12px}.wide .legend{display:inline-flex}
.key{white-space:nowrap}.key b{color:var(--text);font-weight:600;display:inline-block;min-width:3.2em}
.key i{display:inline-block;width:9px;height:9px;border-radius:3px;background:var(--c);margin-right:5px}
.plot{position:relative;height:160px;border-bottom:1px solid var(--dim);touch-action:pan-y}
.plot svg{position:absolute;inset:0;width:100%;height:100%;overflow:visible}
.plot path{fill:none;vector-effect:non-scaling-stroke}
.grid{stroke:var(--grid)}
.plot path.band{fill:var(--c);opacity:.2}.plot path.area{fill:var(--c);opacity:.75}
.line{stroke:var(--c);stroke-linejoin:round}.pale{opacity:.38}
.dot{stroke:var(--c);stroke-width:6px;stroke-linecap:round}
.resume{stroke:var(--dim);stroke-dasharray:4 4}
.limit{stroke:var(--good);stroke-dasharray:6 5}
.bad{stroke:var(--bad);stroke-width:2px}
.badge{position:absolute;top:-9px;transform:translateX(-50%);background:var(--dim);color:var(--card);border-radius:8px;font-size:10px;line-height:16px;
min-width:16px;text-align:center;padding:0 4px;font-weight:700}
.cursor{position:absolute;top:0;bottom:0;width:1px;background:var(--text);opacity:.55;display:none;pointer-events:none}
.x,.y{position:relative;font-size:11px;color:var(--dim)}
.wide .plot{height:280px}.x{grid-column:2;height:20px}.x span{position:absolute;top:3px;transform:translateX(-50%);white-space:nowrap}
.x .first{transform:none}.x .last{transform:translateX(-100%)}
.y span{position:absolute;right:8px;transform:translateY(-50%);white-space:nowrap}
.note{grid-column:1/-1;margin:4px 0 0 8px;font-size:11.5px;color:var(--dim)}
details.item{padding:7px 0}details.item+details.item{border-top:1px solid var(--grid)}
.card{padding:14px 16px}.card+.card{margin-top:12px}
.shares{display:flex;height:26px;border-radius:6px;overflow:hidden;gap:1px;margin-bottom:10px}
.shares i{background:var(--c);min-width:1px}
.shares.thin{height:8px;margin:0;min-width:120px}
.scroll{overflow-x:auto}
table{border-collapse:collapse;width:100%;font-size:13px}
th{text-align:left;color:var(--dim);font-weight:500;font-size:12px;white-space:nowrap}
td,th{padding:4px 18px 4px 0;border-bottom:1px solid var(--grid);vertical-align:top;overflow-wrap:anywhere}
tr:last-child td{border-bottom:0}
h1+.card{margin-top:16px}
table.numbers td{white-space:nowrap}table.numbers td:last-child{white-space:normal;min-width:14em}
table.facts td:first-child{color:var(--dim);white-space:nowrap;width:1%}
mark{background:color-mix(in srgb,var(--c2) 20%,transparent);color:inherit;border-radius:4px;padding:1px 5px;font-weight:600}
pre{margin:6px 0 0;padding:10px 12px;background:var(--bg);border-radius:7px;font:12.5px/1.5 ui-monospace,SFMono-Regular,Menlo,Consolas,monospace;
white-space:pre-wrap;overflow-wrap:anywhere;tab-size:4;max-height:26em;overflow-y:auto}
code{font:12.5px ui-monospace,SFMono-Regular,Menlo,Consolas,monospace}
summary{cursor:pointer;font-weight:600}
details>.columns{margin-top:10px}
.columns{columns:2 420px;column-gap:32px}.columns>div{break-inside:avoid;margin-bottom:14px}
.columns h3{font-size:13px;margin:0 0 2px}
footer{margin-top:30px;color:var(--dim);font-size:12px}
@media(max-width:560px){main{padding:18px 12px 30px}.chart{grid-template-columns:52px minmax(0,1fr);padding-right:12px}.wide .plot{height:220px}
.tile b{font-size:17px}}
@media print{body{background:#fff}.chart,.card,.tile{break-inside:avoid}}
"""

SCRIPT = """
const data=JSON.parse(document.getElementById('data').textContent),plots=[...document.querySelectorAll('.plot')];
function nearest(steps,step){let a=0,b=steps.length-1;while(b-a>1){const m=(a+b)>>1;steps[m]<step?a=m:b=m}
return b>=0&&Math.abs(steps[b]-step)<Math.abs(steps[a]-step)?b:a}
function show(step){for(const plot of plots){const chart=data.charts[plot.dataset.chart],[low,high]=chart.x,cursor=plot.querySelector('.cursor');
const values=plot.parentNode.querySelectorAll('.key b');
if(step===null){cursor.style.display='none';values.forEach(v=>v.textContent=v.dataset.last);continue}
cursor.style.display='block';cursor.style.left=100*(step-low)/(high-low)+'%';
chart.lines.forEach(([row,texts],i)=>{values[i].textContent=texts[nearest(data.steps[row],step)]})}
document.querySelectorAll('.at').forEach(a=>a.textContent=step===null?'':'step '+Math.round(step).toLocaleString('en'))}
for(const plot of plots){const chart=data.charts[plot.dataset.chart];
plot.addEventListener('pointermove',e=>{const box=plot.getBoundingClientRect(),[low,high]=chart.x;
show(low+(high-low)*Math.min(1,Math.max(0,(e.clientX-box.left)/box.width)))});
plot.addEventListener('pointerleave',()=>show(null))}
"""
"""A pointer over one picture reads all of them at the same step."""
