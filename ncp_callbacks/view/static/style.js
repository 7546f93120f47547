/** The look of the page, light and dark. */
export const CSS = `
.ncp{--bg:#fff;--fg:#212121;--dim:#5f6368;--line:#dadce0;--grid:#ececec;--hover:#f5f5f5;--accent:#b34700;
 font:13px/1.45 Roboto,system-ui,sans-serif;color:var(--fg);background:var(--bg);display:grid;
 grid-template-columns:minmax(180px,250px) minmax(0,1fr);grid-template-rows:auto 1fr;min-height:100vh}
.ncp.dark{--bg:#303030;--fg:#f5f5f5;--dim:#bdbdbd;--line:#5c5c5c;--grid:#444;--hover:#3c3c3c;--accent:#ffb46b}
.ncp *{box-sizing:border-box}
.ncp header{grid-column:1/3;display:flex;gap:12px;align-items:center;padding:8px 14px;flex-wrap:wrap;
 border-bottom:1px solid var(--line);position:sticky;top:0;background:var(--bg);z-index:3}
.ncp header input[type=range]{flex:1;min-width:160px;accent-color:var(--accent)}
.ncp header output{min-width:13em;font-variant-numeric:tabular-nums}
.ncp button,.ncp select,.ncp input[type=search]{font:inherit;color:inherit;background:var(--bg);
 border:1px solid var(--line);border-radius:4px;padding:3px 9px}
.ncp button{cursor:pointer}.ncp button:hover{background:var(--hover)}
.ncp button[aria-pressed=true]{border-color:var(--accent);color:var(--accent)}
.ncp :focus-visible{outline:2px solid var(--accent);outline-offset:1px}
.ncp aside{border-right:1px solid var(--line);padding:10px;overflow:auto;max-height:calc(100vh - 50px);position:sticky;top:50px}
.ncp aside ul{list-style:none;margin:6px 0;padding:0}
.ncp aside li{display:flex;gap:6px;align-items:center;padding:2px 0}
.ncp aside li label{display:flex;gap:6px;align-items:center;flex:1;min-width:0;overflow-wrap:anywhere;cursor:pointer}
.ncp aside li button{padding:0 5px;font-size:11px}
.ncp i.dot{width:10px;height:10px;border-radius:50%;flex:none;display:inline-block}
.ncp main{padding:12px 16px;display:grid;grid-template-columns:minmax(0,1fr);gap:26px;align-content:start;min-width:0}
.ncp h2{font-size:16px;font-weight:500;margin:0}.ncp h3{font-size:13px;font-weight:500;margin:0 0 4px}
.ncp p{margin:2px 0 8px;color:var(--dim);max-width:90ch}
.ncp .row{display:flex;gap:16px;flex-wrap:wrap;align-items:flex-start}
.ncp .bar{display:flex;gap:8px;margin:0 0 8px;align-items:center;flex-wrap:wrap}.ncp .bar .end{margin-left:auto}
.ncp figure{margin:0}.ncp figcaption{color:var(--dim);padding:0 0 3px;display:flex;flex-wrap:wrap;gap:0 6px;align-items:baseline;max-width:60ch}
.ncp figcaption b{color:var(--fg);font-weight:500;overflow-wrap:anywhere}.ncp canvas{display:block;touch-action:pan-y}
.ncp .tip{position:fixed;pointer-events:none;background:#212121;color:#fff;padding:5px 8px;border-radius:4px;
 font-size:12px;z-index:9;white-space:pre;box-shadow:0 1px 4px #0006;max-width:60ch;overflow:hidden}
.ncp .note{padding:30px;color:var(--dim)}
.ncp table{border-collapse:collapse;font-variant-numeric:tabular-nums}.ncp td,.ncp th{padding:3px 10px;text-align:right;white-space:nowrap;border-bottom:1px solid var(--line)}
.ncp th:first-child,.ncp td:first-child{text-align:left;min-width:8em;white-space:normal;overflow-wrap:anywhere}.ncp th button{border:0;padding:0;font-weight:500}
.ncp .scroll{overflow:auto;max-width:100%}
.ncp ul.findings{list-style:none;margin:0;padding:0;max-width:62ch}.ncp ul.findings li{padding:4px 0;display:grid;grid-template-columns:5.5em 1fr;gap:8px}
.ncp ul.findings b{font-weight:500}.ncp ul.findings p{color:inherit;margin:2px 0 0}
.ncp .problem{color:#c62828}.ncp .warning{color:var(--accent)}.ncp .good{color:#00796b}.ncp.dark .problem{color:#ff9e9e}.ncp.dark .good{color:#7fd6c5}
@media (max-width:700px){.ncp{grid-template-columns:minmax(0,1fr)}.ncp header{grid-column:1}.ncp aside{position:static;max-height:40vh;border-right:0;border-bottom:1px solid var(--line)}}
`;
